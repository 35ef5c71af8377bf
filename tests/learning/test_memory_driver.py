"""The driver in memory: virtual time, quorum and deadline, sums, what it refuses, resync."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tierline.core import catalog
from tierline.core.arrays import Params
from tierline.core.errors import ConfigError, NodeFailed
from tierline.core.types import Arrays, NodeId
from tierline.learning.compute import Gradient
from tierline.learning.driver.memory import Memory
from tierline.learning.driver.world import ROOT, LinkSpec, World
from tierline.learning.effects import Effects, Message, exchange, gradient, params, reduce
from tierline.learning.errors import RuleError
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

    def __init__(self, body: Callable[[Script, Turn], Effects[None]]) -> None:
        self.body = body
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


def test_answers_come_sorted_by_sender_whoever_was_first() -> None:
    world = World(link_of={(B, A): LinkSpec(0.3), (C, A): LinkSpec(0.2), (D, A): LinkSpec(0.1)})
    driver, rules = drive(everybody, world=world)
    driver.run(2)
    assert rules[A].seen == [(B, C, D)] * 2
    assert driver.rounds == dict.fromkeys((A, B, C, D), 2)
    assert driver.counts.num_messages == 24 and driver.counts.num_bytes == 24 * 16


def test_a_link_carries_one_message_after_the_other() -> None:
    def body(rule: Script, t: Turn) -> Effects[None]:
        if t.me == A:
            for tag in ("one", "two"):
                yield from exchange(tag, {B: {"x": rule.x.flat, "n": 1}}, ())  # 24 bytes each
        else:
            for tag in ("one", "two"):
                yield from exchange(tag, {}, {A})

    driver, _ = drive(body, "ab", world=World(link=LinkSpec(latency_s=0.5, bandwidth_bps=192.0)))
    driver.run(1)
    assert driver.time_s == 2.5


def test_computing_takes_its_time_per_node() -> None:
    def body(rule: Script, t: Turn) -> Effects[None]:
        g = yield from gradient(rule.x, t.batch)
        rule.x = rule.x - t.lr * g.values

    driver, rules = drive(body, "ab", world=World(compute_s=0.1, compute_of={B: 0.4}))
    driver.run(3)
    assert driver.time_s == pytest.approx(1.2)
    assert np.allclose(rules[A].x.flat, X.flat - 0.3)


def test_a_sender_may_write_on_and_a_receiver_may_not() -> None:
    def body(rule: Script, t: Turn) -> Effects[None]:
        got = yield from exchange("x", {j: {"x": rule.x.flat} for j in t.peers_out}, ())
        rule.x.flat += 100
        got = yield from exchange("x", {}, t.peers_in)
        array = next(iter(got.values()))["x"]
        assert isinstance(array, np.ndarray)
        rule.seen.append(array.tolist())
        with pytest.raises(ValueError, match="read-only"):
            array += 1

    driver, rules = drive(body, "ab")
    driver.run(1)
    assert rules[A].seen == rules[B].seen == [X.flat.tolist()]


STAGGERED = World(link_of={(B, A): LinkSpec(0.3), (C, A): LinkSpec(0.1), (D, A): LinkSpec(0.2)})


def test_a_quorum_takes_the_first_to_arrive_and_the_rest_can_be_had_later() -> None:
    def body(rule: Script, t: Turn) -> Effects[None]:
        if t.me != A:
            yield from exchange("x", {A: {}}, ())
            return
        first = yield from exchange("x", {}, t.peers_in, quorum=2)
        rest = yield from exchange("x", {}, t.peers_in - first.keys())
        rule.seen += [tuple(first), tuple(rest)]

    driver, rules = drive(body, world=STAGGERED)
    driver.run(1)
    assert rules[A].seen == [(C, D), (B,)]
    assert driver.time_s == pytest.approx(0.3)


def test_a_deadline_ends_a_wait_with_what_is_there_and_late_messages_are_counted() -> None:
    def body(rule: Script, t: Turn) -> Effects[None]:
        if t.me != A:
            yield from exchange("x", {A: {}}, ())
            return
        got = yield from exchange("x", {}, t.peers_in, within_s=0.25)
        nothing = yield from exchange("y", {}, t.peers_in, within_s=0.01)
        rule.seen += [tuple(got), tuple(nothing)]

    driver, rules = drive(body, world=STAGGERED)
    driver.run(1)
    assert rules[A].seen == [(C, D), ()]
    assert driver.counts.num_late == 1


def test_a_quorum_of_one_is_the_next_arrival_also_where_more_are_there() -> None:
    def body(rule: Script, t: Turn) -> Effects[None]:
        if t.me != A:
            yield from exchange("x", {A: {}}, ())
            return
        yield from gradient(rule.x, t.batch)
        rest = t.peers_in
        while rest:
            got = yield from exchange("x", {}, rest, quorum=1)
            rule.seen.append(tuple(got))
            rest -= got.keys()

    world = World(compute_s=1.0, link_of=STAGGERED.link_of)
    driver, rules = drive(body, world=world)
    driver.run(1)
    assert rules[A].seen == [(C,), (D,), (B,)]


def test_a_wait_is_ended_only_by_its_own_messages_and_its_own_deadline() -> None:
    def body(rule: Script, t: Turn) -> Effects[None]:
        if t.me == A:
            for tag, sender, within_s in (("two", C, 1.0), ("one", C, None), ("one", B, None), ("three", B, None)):
                got = yield from exchange(tag, {}, {sender}, within_s=within_s)
                rule.seen.append((tag, *got))
        elif t.me == B:
            yield from exchange("one", {A: {}}, ())
            yield from gradient(rule.x, t.batch)
            yield from exchange("three", {A: {}}, ())
        else:
            yield from exchange("one", {A: {}}, ())
            yield from exchange("two", {A: {}}, ())

    world = World(compute_s=2.0, link=LinkSpec(0.5), link_of={(B, A): LinkSpec(0.1)})
    driver, rules = drive(body, "abc", world=world)
    driver.run(1)
    assert rules[A].seen == [("two", C), ("one", C), ("one", B), ("three", B)]
    assert driver.time_s == pytest.approx(2.1)

    def others_first(rule: Script, t: Turn) -> Effects[None]:
        if t.me == A:
            got = yield from exchange("x", {}, {C})
            rule.seen.append(tuple(got))
        else:
            yield from exchange("x", {A: {}}, ())

    driver, rules = drive(others_first, "abc", world=world)
    driver.run(1)
    assert rules[A].seen == [(C,)]


def test_fast_nodes_run_ahead_and_rounds_do_not_mix() -> None:
    def body(rule: Script, t: Turn) -> Effects[None]:
        if t.me == A:
            yield from exchange("n", {B: {"n": t.round}}, ())
        else:
            yield from gradient(rule.x, t.batch)
            got = yield from exchange("n", {}, {A})
            rule.seen.append(got[A]["n"])

    driver, rules = drive(body, "ab", world=World(compute_s=1.0))
    driver.run(4)
    assert rules[B].seen == [0, 1, 2, 3]


def weighted(*, quorum: int | None = None, within_s: float | None = None) -> Body:
    def body(rule: Script, t: Turn) -> Effects[None]:
        weight = 1.0 + t.nodes.index(t.me)
        total = yield from reduce("s", weight * rule.x, t.nodes, weight=weight, quorum=quorum, within_s=within_s)
        rule.seen.append((total.members, total.weight, total.sum.flat.tolist(), total.mean.flat.tolist()))
        assert total.integers.dtype == np.int64 and not total.integers.flags.writeable

    return body


def test_a_sum_is_weighted_and_takes_the_way_up_and_down() -> None:
    driver, rules = drive(weighted(), world=World(link=LinkSpec(0.25)))
    driver.run(1)
    squares = 1 + 4 + 9 + 16
    sums, means = (X.flat * squares).tolist(), (X.flat * squares / 10).tolist()
    for rule in rules.values():
        assert rule.seen == [((A, B, C, D), 10.0, sums, pytest.approx(means))]
    assert driver.time_s == 0.5
    assert driver.counts.num_bytes == 4 * (4 * 8 + 8)


@pytest.mark.parametrize("how", [{"quorum": 3}, {"within_s": 0.15}])
def test_a_sum_may_close_without_the_slow_who_get_it_all_the_same(how: dict[str, float]) -> None:
    up = {(B, ROOT): LinkSpec(0.4), (C, ROOT): LinkSpec(0.1), (D, ROOT): LinkSpec(0.05)}
    driver, rules = drive(weighted(**how), world=World(link_of=up))  # type: ignore[arg-type]
    driver.run(1)
    assert len({str(rule.seen) for rule in rules.values()}) == 1
    assert rules[B].seen[0][0] == (A, C, D)  # type: ignore[index]
    assert driver.time_s == pytest.approx(0.4)


@pytest.mark.parametrize("fails_after", ["post", "sum"])
def test_a_turn_that_runs_again_counts_once(fails_after: str) -> None:
    failed: list[str] = []

    def fail(t: Turn, place: str) -> None:
        if t.me == B and t.round == 1 and place == fails_after and not failed:
            failed.append(place)
            raise OSError("unplugged")

    def body(rule: Script, t: Turn) -> Effects[None]:
        yield from exchange("x", {j: {"x": rule.x.flat} for j in t.peers_out}, ())
        fail(t, "post")
        total = yield from reduce("s", rule.x, t.nodes, weight=2.0)
        fail(t, "sum")
        got = yield from exchange("x", {}, t.peers_in)
        rule.x = total.mean + params(got[min(got)], "x", rule.x)
        assert (total.members, total.weight) == (t.nodes, 2.0 * t.num_nodes)

    world = World(compute_s=0.1, link=LinkSpec(0.02), link_of={(C, ROOT): LinkSpec(0.5)})
    driver, rules = drive(body, world=world)
    with pytest.raises(NodeFailed, match="b, turn 1: OSError: unplugged"):
        driver.run(4)
    driver.run(4)
    assert failed and driver.rounds == dict.fromkeys((A, B, C, D), 4)
    assert all(np.array_equal(rule.x.flat, X.flat * 2**4) for rule in rules.values())


def test_a_sum_under_way_when_a_turn_is_given_up_answers_no_other_sum() -> None:
    failed: list[NodeId] = []

    def body(rule: Script, t: Turn) -> Effects[None]:
        one = yield from reduce("one", rule.x, t.nodes)
        if t.me == C:
            if not failed:
                failed.append(C)
                raise OSError("unplugged")
            return
        two = yield from reduce("two", 2.0 * rule.x, {A, B})
        rule.seen.append((one.mean.flat.tolist(), two.mean.flat.tolist()))

    driver, rules = drive(body, "abc", world=World(link=LinkSpec(0.1)))
    with pytest.raises(NodeFailed, match="c, turn 0"):
        driver.run(1)
    driver.run(1)
    assert rules[A].seen == rules[B].seen == [(X.flat.tolist(), (2 * X.flat).tolist())]


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
