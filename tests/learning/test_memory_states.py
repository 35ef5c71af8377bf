"""The driver in memory: states that are saved, and what is rebuilt after one is loaded."""

from __future__ import annotations

import numpy as np
import pytest
from tests.support.scripts import A, B, C, D, Script, build, drive, everybody

from tierline.core.arrays import Params
from tierline.core.errors import ConfigError, NodeFailed
from tierline.core.types import NodeId
from tierline.learning.driver.memory import Memory
from tierline.learning.effects import Effects, exchange, params
from tierline.learning.errors import RuleError
from tierline.learning.rule import NodeInfo, State, Traits, Turn


def test_states_need_nodes_at_one_round_and_a_fresh_driver() -> None:
    def body(rule: Script, t: Turn) -> Effects[None]:
        yield from exchange("x", {}, ())
        if t.me == B and t.round == 1 and not rule.seen:
            rule.seen.append("once")
            raise ValueError("a bug")

    driver, _ = drive(body, "ab")
    with pytest.raises(NodeFailed, match="b, turn 1: ValueError: a bug"):
        driver.run(3)
    assert driver.rounds == {A: 2, B: 1}
    with pytest.raises(RuleError, match="different rounds"):
        driver.states()
    driver.run(3)
    with pytest.raises(ConfigError, match="has not run"):
        driver.restore(driver.states(), round=3)


class Deltas(Script):
    """Gossip by differences: remembers the weighted sum of its neighbours' models, and does not save it."""

    traits = Traits(tolerates_loss=False, per_edge_state=True, conserves="mean", directed=False)

    def __init__(self) -> None:
        super().__init__(everybody)

    def start(self, x: Params, node: NodeInfo) -> None:
        super().start(x, node)
        self.old = self.x.copy()
        self.sum = self.x.copy()

    def turn(self, t: Turn) -> Effects[None]:
        d = self.x - self.old
        got = yield from exchange("x", {j: {"d": d.flat} for j in t.peers_out}, t.peers_in)
        self.sum = self.sum + t.w[t.me] * d
        for j, message in got.items():
            self.sum = self.sum + t.w[j] * params(message, "d", self.x)
        self.old, self.x = self.x, self.sum.copy()
        self.x.axpy(-t.lr * (1 + t.nodes.index(t.me)), self.old)

    def resync(self, t: Turn) -> Effects[None]:
        got = yield from exchange("x", {j: {"x": self.old.flat} for j in t.peers_out}, t.peers_in)
        self.sum = t.w[t.me] * self.old
        for j, message in got.items():
            self.sum = self.sum + t.w[j] * params(message, "x", self.x)

    def state(self) -> State:
        return {"x": self.x.flat.copy(), "old": self.old.flat.copy(), "sum": self.sum.flat.copy()}

    def load(self, state: State) -> None:
        self.x, self.old, self.sum = (Params(self.x.layout, np.array(state[key])) for key in ("x", "old", "sum"))


def test_what_is_remembered_about_neighbours_is_rebuilt_by_resync() -> None:
    def fresh() -> tuple[Memory, dict[NodeId, Script]]:
        rules: dict[NodeId, Script] = {me: Deltas() for me in (A, B, C, D)}
        return build(rules, topology="ring"), rules

    whole, expected = fresh()
    whole.run(6)
    first, _ = fresh()
    first.run(3)
    states = {me: {**state, "sum": np.full(4, np.nan, np.float32)} for me, state in first.states().items()}
    second, resumed = fresh()
    second.restore(states, round=3)
    assert second.rounds == dict.fromkeys((A, B, C, D), 3)
    second.run(6)
    for me, rule in resumed.items():
        assert np.abs(rule.x.flat - expected[me].x.flat).max() < 1e-5
    second.resync()
    second.run(7)
    assert all(np.isfinite(rule.x.flat).all() for rule in resumed.values())


def test_a_resync_that_failed_is_taken_up_where_it_stopped() -> None:
    class Fragile(Deltas):
        def resync(self, t: Turn) -> Effects[None]:
            yield from super().resync(t)
            if t.me == D and not self.seen:
                self.seen.append("once")
                raise OSError("unplugged")

    rules: dict[NodeId, Script] = {me: Fragile() for me in (A, B, C, D)}
    driver = build(rules, topology="ring")
    with pytest.raises(NodeFailed, match="d, resync 0: OSError: unplugged"):
        driver.resync()
    driver.resync()
    driver.resync()
    driver.run(2)
    assert driver.rounds == dict.fromkeys((A, B, C, D), 2)
