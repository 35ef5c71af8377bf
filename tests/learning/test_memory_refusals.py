"""The driver in memory: what breaks the contract is refused by name."""

from __future__ import annotations

import numpy as np
import pytest
from tests.support.scripts import A, B, Body, C, Flat, Script, X, build, drive, everybody

from tierline.core import catalog
from tierline.core.errors import ConfigError
from tierline.core.types import NodeId
from tierline.learning.driver.memory import Memory
from tierline.learning.driver.world import World
from tierline.learning.effects import Effects, Message, exchange, reduce
from tierline.learning.errors import RuleError
from tierline.learning.rule import Rule, Traits, Turn


def refused(body: Body, message: str, *, topology: str = "complete") -> None:
    driver, rules = drive(body, topology=topology)
    with pytest.raises(RuleError, match=message):
        driver.run(1)
    assert all(np.array_equal(rule.x.flat, X.flat) for rule in rules.values())


def test_what_breaks_the_contract_is_refused_by_name() -> None:
    def stranger(rule: Script, t: Turn) -> Effects[None]:
        yield from exchange("x", {C: {}}, ())

    def twice(rule: Script, t: Turn) -> Effects[None]:
        for _ in range(2):
            yield from exchange("x", {j: {} for j in t.peers_out}, t.peers_in)

    def twice_received(rule: Script, t: Turn) -> Effects[None]:
        yield from exchange("x", {j: {} for j in t.peers_out}, t.peers_in)
        yield from exchange("x", {}, t.peers_in)

    def too_many(rule: Script, t: Turn) -> Effects[None]:
        yield from exchange("x", {}, t.peers_in, quorum=4)

    def text(rule: Script, t: Turn) -> Effects[None]:
        message: Message = {"x": "words"}  # type: ignore[dict-item]
        yield from exchange("x", dict.fromkeys(t.peers_out, message), ())

    def outside(rule: Script, t: Turn) -> Effects[None]:
        yield from reduce("s", rule.x, [B, C])

    def sum_twice(rule: Script, t: Turn) -> Effects[None]:
        for _ in range(2):
            yield from reduce("s", rule.x, t.nodes)

    def unlike(rule: Script, t: Turn) -> Effects[None]:
        yield from reduce("s", rule.x, t.nodes, fraction_bits=20 + t.nodes.index(t.me))

    def no_effect(rule: Script, t: Turn) -> Effects[None]:
        yield "x"  # type: ignore[misc]

    refused(stranger, "a, turn 0: tag 'x': no edge to c in this topology", topology="ring")
    refused(twice, "turn 0: tag 'x': used twice in one turn with .*; give each its own tag")
    refused(twice_received, "d, turn 0: tag 'x': used twice in one turn with a, b, c")
    refused(too_many, "a, turn 0: tag 'x': a quorum of 4 out of 3 expected nodes")
    refused(text, "a, turn 0: tag 'x': 'x' is a str; a message holds arrays and numbers")
    refused(outside, "a, turn 0: sum 's': the group lacks a")
    refused(sum_twice, "turn 0: sum 's': used twice in one turn")
    refused(unlike, "b, turn 0: sum 's': members differ in group, receivers, layout or fraction_bits")
    refused(no_effect, "a, turn 0: yielded a str, which is no effect")


def test_worlds_and_casts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"loss = 1\.0 is not in"):
        drive(everybody, world=World(loss=1.0))
    rules: dict[NodeId, Rule] = {A: Script(everybody)}
    with pytest.raises(ConfigError, match="trainers: b without a rule"):
        Memory(rules, {B: Flat()}, catalog.make("topology", "ring"), X, lr=lambda round: 0.1)  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="edges of one direction, but the rule of a needs both"):
        drive(everybody, topology="exponential")

    class Remembers(Script):
        traits = Traits(tolerates_loss=False, per_edge_state=True, conserves=None, directed=True)

    with pytest.raises(ConfigError, match="neighbours that change, but the rule of a remembers its own"):
        build({me: Remembers(everybody) for me in (A, B, C)}, topology="exponential")
