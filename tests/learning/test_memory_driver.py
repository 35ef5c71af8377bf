"""The driver in memory: virtual time, quorum and deadline."""

from __future__ import annotations

import numpy as np
import pytest
from tests.support.scripts import A, B, C, D, Script, X, drive, everybody

from tierline.learning.driver.world import LinkSpec, World
from tierline.learning.effects import Effects, exchange, gradient
from tierline.learning.rule import Turn


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
