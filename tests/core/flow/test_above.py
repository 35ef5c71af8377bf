"""A sample that the nodes above cannot answer in time is answered at once, by the best exit so far."""

from __future__ import annotations

from bench import MS, Bench
from tiny_bundle import VIEWS

from tierline.core.bundle import Bundle
from tierline.core.flow.above import Above
from tierline.core.link import messages as m


def test_the_estimate_follows_and_fades() -> None:
    above = Above()
    assert above.expected_ns == 0 and not above.is_too_late(5, 5)
    for _ in range(100):
        above.took(80 * MS)
    assert above.expected_ns == 80 * MS
    assert not above.is_too_late(0, 80 * MS)
    tries = 0
    while above.is_too_late(0, 20 * MS):
        tries += 1
    assert 10 < tries < 40, "the way up is tried again, but not at once"
    jittery = Above()
    for n in range(100):
        jittery.took((60 + 40 * (n % 2)) * MS)
    assert jittery.expected_ns > 95 * MS


def climb(bench: Bench, seq: int, budget_ms: float) -> list[m.Part]:
    """One sample that no exit below is sure of; what was escalated of it."""
    for view in VIEWS:
        bench.send(view, seq, eager=True, budget_ms=budget_ms)
    bench.step()
    return bench.port.take_up(m.Part)


def test_a_junction_predicts_from_recent_answers(tiny_bundle: Bundle) -> None:
    """The link's own round trip is short: it is the nodes above that take long."""
    bench = Bench(tiny_bundle)
    bench.connect_devices()
    for seq in range(20):
        (part,) = climb(bench, seq, 1000.0)
        bench.step(100)
        bench.flow.verdict(bench.reply(part), bench.clock.now_ns())
        bench.step()
    assert set(bench.verdicts().values()) == {("cloud", "", 3)}
    assert climb(bench, 50, 60.0) == []
    assert set(bench.verdicts().values()) == {("edge", "deadline", 3)}
    assert len(climb(bench, 51, 300.0)) == 1


def test_a_device_predicts_from_recent_answers(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle, "device-left")
    for seq in range(20):
        bench.capture("left", seq)
        bench.step()
        (part,) = bench.port.take_up(m.Part)
        bench.step(100)
        bench.flow.verdict(bench.reply(part), bench.clock.now_ns())
    bench.capture("left", 50, budget_ms=60.0)
    bench.step()
    assert bench.port.take_up(m.Part) == []
    last = bench.port.outcomes[-1]
    assert (last.id.seq, last.exit, last.reason) == (50, "local", "deadline")
    bench.capture("left", 51, budget_ms=300.0)
    bench.step()
    assert len(bench.port.take_up(m.Part)) == 1


def test_an_answer_that_never_came_counts(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle)
    bench.connect_devices()
    assert len(climb(bench, 0, 200.0)) == 1
    bench.step(250)
    assert {reason for _, reason, _ in bench.verdicts().values()} == {"deadline"}
    assert climb(bench, 1, 100.0) == []
