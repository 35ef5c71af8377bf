"""A junction whose samples run out of time."""

from __future__ import annotations

import pytest
from bench import ALWAYS_LEAVE, NEVER_LEAVE, Bench, climb, escalated, sample, told

from tierline.core.bundle import Bundle
from tierline.core.plan import Join


def test_deadline_while_joining(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle, join=Join(window_ms=5000))
    bench.connect_devices()
    bench.send("left", 0)
    bench.step(999)
    assert bench.verdicts() == {}
    bench.step(1)
    assert bench.verdicts() == {("left", 0): ("local", "deadline", 1)}


@pytest.mark.parametrize("thresholds", [ALWAYS_LEAVE, NEVER_LEAVE])
def test_deadline_between_the_join_and_its_decision(tiny_bundle: Bundle, thresholds: dict[str, float]) -> None:
    bench = Bench(tiny_bundle, thresholds=thresholds)
    bench.connect_devices()
    bench.send_all(0)
    bench.step(2000)
    assert told(bench) == {("local", "deadline", 3)}
    assert not bench.port.down, "nobody is asked for features any more"
    bench.step(5000)
    assert bench.verdicts() == {} and bench.flow.num_open == 0


def test_no_time_at_all(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle)
    bench.connect_devices()
    bench.send_all(0, budget_ms=0.0)
    bench.step()
    assert told(bench) == {("local", "deadline", 3)}


def test_window_and_deadline_over_at_once(tiny_bundle: Bundle) -> None:
    """The process was held up for longer than both."""
    bench = Bench(tiny_bundle)
    bench.connect_devices()
    bench.send("left", 0)
    bench.send("right", 0)
    bench.step(60_000)
    assert set(bench.verdicts().values()) == {("local", "deadline", 2)}
    bench.step()
    assert bench.flow.num_open == 0


def test_deadline_while_pulling(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle)
    bench.connect_devices()
    bench.send_all(0)
    bench.step()
    bench.step(2000)
    assert told(bench) == {("local", "deadline", 3)}
    bench.answer_pulls()
    bench.step()
    assert bench.verdicts() == {} and not bench.port.up


def test_deadline_while_the_engine_runs(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle)
    bench.connect_devices()
    bench.port.deferred = True
    bench.send_all(0, eager=True)
    bench.send_all(1, eager=True, budget_ms=10_000.0)
    bench.step()
    bench.step(2000)
    assert told(bench) == {("local", "deadline", 3)}
    bench.port.finish()
    bench.step()
    assert escalated(bench).ids == [sample(1)]


def test_deadline_while_waiting_for_the_engine(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle)
    bench.connect_devices()
    bench.port.deferred = True
    bench.send_all(1, eager=True, budget_ms=10_000.0)
    bench.step()
    bench.send_all(0, eager=True)
    bench.step()
    bench.step(2000)
    assert told(bench) == {("local", "deadline", 3)}
    bench.port.finish()
    bench.step()
    assert escalated(bench).ids == [sample(1)] and not bench.port.running


def test_deadline_while_the_parent_works(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle)
    climb(bench)
    bench.step(2000)
    assert told(bench) == {("edge", "deadline", 3)}


def test_an_engine_that_fails(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle)
    bench.connect_devices()
    bench.port.fails = True
    bench.send_all(0, eager=True)
    bench.step()
    assert told(bench) == {("local", "engine", 3)}
    bench.port.fails = False
    bench.send_all(1, eager=True)
    bench.step()
    assert escalated(bench).ids == [sample(1)], "the next sample runs"
