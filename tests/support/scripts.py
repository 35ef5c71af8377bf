"""Rules written as generator functions, and the driver in memory that runs them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from tierline.core import catalog
from tierline.core.arrays import Params
from tierline.core.types import Arrays, NodeId
from tierline.learning.compute import Gradient
from tierline.learning.driver.memory import Memory
from tierline.learning.driver.world import World
from tierline.learning.effects import Effects, exchange
from tierline.learning.rule import NodeInfo, Rule, State, Traits, Turn

A, B, C, D = (NodeId(name) for name in "abcd")
X = Params.from_arrays({"w": np.arange(1, 5, dtype=np.float32)})


class Flat:
    """The loss is the sum of all parameters."""

    def gradient(self, at: Params, batch: Arrays, terms: object = ()) -> Gradient:
        return Gradient(Params(at.layout, np.ones_like(at.flat)), 0.0, 1)


class Script:
    """Runs a generator function as its turn, and notes things down."""

    traits = Traits(tolerates_loss=False, per_edge_state=False, conserves=None, directed=False)
    x: Params

    def __init__(self, body: Callable[[Script, Turn], Effects[None]], *, tolerates_loss: bool = False) -> None:
        self.body = body
        if tolerates_loss:
            self.traits = dataclasses.replace(self.traits, tolerates_loss=True)
        self.seen: list[object] = []

    def start(self, x: Params, node: NodeInfo) -> None:
        self.x = x.copy()

    def turn(self, t: Turn) -> Effects[None]:
        yield from self.body(self, t)

    def resync(self, t: Turn) -> Effects[None]:
        yield from ()

    def state(self) -> State:
        return {"x": self.x.flat.copy()}

    def load(self, state: State) -> None:
        self.x = Params(self.x.layout, np.array(state["x"]))


Body = Callable[[Script, Turn], Effects[None]]


def drive(
    body: Body, nodes: str = "abcd", *, topology: str = "complete", world: World | None = None
) -> tuple[Memory, dict[NodeId, Script]]:
    rules = {NodeId(name): Script(body) for name in nodes}
    return build(rules, topology=topology, world=world), rules


def build(rules: dict[NodeId, Script], *, topology: str = "complete", world: World | None = None) -> Memory:
    as_rules: dict[NodeId, Rule] = dict(rules)
    trainers = {me: Flat() for me in rules}
    return Memory(as_rules, trainers, catalog.make("topology", topology), X, lr=lambda round: 0.1, world=world)


def everybody(rule: Script, t: Turn) -> Effects[None]:
    got = yield from exchange("x", {j: {"x": rule.x.flat} for j in t.peers_out}, t.peers_in)
    rule.seen.append(tuple(got))
