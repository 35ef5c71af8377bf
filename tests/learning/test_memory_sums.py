"""The driver in memory: weighted sums, whole or without the slow, and turns that run again."""

from __future__ import annotations

import numpy as np
import pytest
from tests.support.scripts import A, B, Body, C, D, Script, X, drive

from tierline.core.errors import NodeFailed
from tierline.core.types import NodeId
from tierline.learning.driver.world import ROOT, LinkSpec, World
from tierline.learning.effects import Effects, exchange, params, reduce
from tierline.learning.rule import Turn


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
