"""What a node says of the way up and of its own speed: only what the Plan asks for, only what was really measured."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from tierline.core.errors import LinkTimeout
from tierline.core.flow.sounding import Sounding
from tierline.core.flow.speed import ENOUGH_RUNS, WINDOW_NS, SectionTimes


class Way:
    """A parent whose soundings are written down beforehand."""

    def __init__(self, *found: tuple[float, float] | None) -> None:
        self.found, self.known = list(found), list[float]()

    async def sound(self, known_bps: float) -> tuple[int, float]:
        self.known.append(known_bps)
        told = self.found.pop(0)
        if told is None:
            raise LinkTimeout("no answer")
        rtt_ms, mbps = told
        return int(rtt_ms * 1e6), known_bps or mbps * 1e6


def sounding(**valid: Any) -> tuple[Sounding, Any]:
    link = SimpleNamespace(is_up=True, bps=0.0)
    link.sent_bps = lambda: (link.bps, 1.0)
    node: Any = SimpleNamespace(id="gate", parent=link, plan=SimpleNamespace(valid=valid))
    return Sounding(node, every_s=0.0), link


def sound(made: Sounding, way: Way) -> None:
    while way.found:
        asyncio.run(made.sound(way))


def test_the_median_rate_and_the_shortest_trip_of_the_last_three_count() -> None:
    made, _ = sounding(**{"up_mbps:gate": (1.0, 2.0)})
    assert made.record() == {}
    sound(made, Way((50.0, 20.0)))
    assert made.record() == {"rtt_ms": 50.0, "up_mbps": 20.0, "up_from": "probe"}
    sound(made, Way((60.0, 1.0), None, (55.0, 18.0)))
    assert made.record() == {"rtt_ms": 50.0, "up_mbps": 18.0, "up_from": "probe"}
    sound(made, Way((61.0, 1.1), (62.0, 1.2)))
    assert made.record() == {"rtt_ms": 55.0, "up_mbps": 1.2, "up_from": "probe"}


def test_behind_samples_that_fill_the_link_only_its_rate_is_told() -> None:
    made, link = sounding(**{"up_mbps:gate": (1.0, 2.0)})
    sound(made, Way((50.0, 20.0)))
    link.bps = 3e6
    way = Way((900.0, 0.0))
    sound(made, way)
    assert way.known == [3e6]
    assert made.record() == {"up_mbps": 3.0, "up_from": "payloads"}
    link.bps = 0.0
    assert made.record() == {}, "what was measured before samples filled the link is old"
    sound(made, Way((50.0, 20.0)))
    assert made.record() == {"rtt_ms": 50.0, "up_mbps": 20.0, "up_from": "probe"}
    link.is_up = False
    assert made.record() == {}


def test_a_plan_without_ranges_costs_nothing() -> None:
    made, link = sounding(**{"up_mbps:other": (1.0, 2.0)})
    made.parent = Way()

    async def a_while() -> None:
        running = asyncio.create_task(made.run())
        await asyncio.sleep(0.02)
        assert not running.done(), running
        running.cancel()

    asyncio.run(a_while())
    assert made.record() == {} and link.is_up
    made.parent = None
    asyncio.run(asyncio.wait_for(made.run(), 1))


def test_sections_are_told_by_the_batch_that_ran_most() -> None:
    times, ms = SectionTimes(), 1_000_000
    for n in range(ENOUGH_RUNS):
        assert times.record(n * ms) == {}
        times.ran(1, 1, (30 if n == 3 else 4) * ms, n * ms)
    assert times.record(ENOUGH_RUNS * ms) == {"1": {"rows": 1, "ms": 4.0, "runs": ENOUGH_RUNS}}
    for n in range(2 * ENOUGH_RUNS):
        times.ran(1, 4, 9 * ms, n * ms)
        times.ran(0, 1, (n % 2) * ms, n * ms)
    found = times.record(2 * ENOUGH_RUNS * ms)
    assert found["1"] == {"rows": 4, "ms": 9.0, "runs": 2 * ENOUGH_RUNS}
    assert found["0"]["ms"] == 0.5
    assert times.record(WINDOW_NS + 100 * ms) == {}, "what is old does not count"
