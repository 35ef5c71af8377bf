"""The pacer on links of virtual time: what samples wait for behind bulk, and how much of the link bulk gets."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

import numpy as np
import pytest

from tierline.core.link.pace import Pacer

MS = 1e6
Seen = Callable[[float], float]
"""When an answer that comes at a time (ns) is looked at."""


def at_once(at_ns: float) -> float:
    return at_ns


class Link:
    """One queue, then a way: a piece leaves when those before it have left; its answer is back a round trip later."""

    def __init__(self, mbit: float, rtt_ms: float, seen: Seen = at_once) -> None:
        self.pacer = Pacer()
        self.num_sent = 0
        self._ns_per_byte, self._rtt_ns, self._seen = 8e3 / mbit, rtt_ms * MS, seen
        self._now_ns = self._free_ns = 0.0
        self._answers: deque[tuple[float, int]] = deque()
        self.waits: list[tuple[float, float]] = []
        """What a sample that comes every 5 ms waits for: when, how long (ns)."""

    def run(self, until_s: float) -> Link:
        """Bulk without end."""
        while self._now_ns < until_s * 1e9:
            size = self.pacer.room(int(self._now_ns))
            if size:
                self.pacer.sent(size, int(self._now_ns))
                self.num_sent += size
                self._free_ns = max(self._now_ns, self._free_ns) + size * self._ns_per_byte
                self._answers.append((self._free_ns + self._rtt_ns, self.num_sent))
                continue
            at_ns, num_bytes = self._answers.popleft()
            then_ns = max(self._now_ns, self._seen(at_ns))
            for tick in range(int(self._now_ns // (5 * MS)) + 1, int(then_ns // (5 * MS)) + 1):
                self.waits.append((tick * 5 * MS, max(0.0, self._free_ns - tick * 5 * MS)))
            self._now_ns = then_ns
            assert self.pacer.received(num_bytes, int(then_ns))
        return self

    def wait_ms(self, percentile: float, from_s: float) -> float:
        return float(np.percentile([wait for at, wait in self.waits if at > from_s * 1e9], percentile)) / MS

    def share(self, seconds: float) -> float:
        return self.num_sent * self._ns_per_byte / (seconds * 1e9)


def test_samples_beside_bulk_wait_a_third_of_a_round_trip_at_most() -> None:
    """20 Mbit/s, 20 ms: what `benchmarks/bench_coexist.py` measures allows 10 ms."""
    link = Link(20, 20).run(40)
    assert link.share(40) > 0.97
    assert link.wait_ms(99, from_s=1.5) < 6.5
    assert link.wait_ms(100, from_s=0) < 16


@pytest.mark.parametrize("jitter_ms", [3.0, 6.0])
def test_answers_that_are_looked_at_late_do_not_starve_bulk(jitter_ms: float) -> None:
    rng = random.Random(1)
    link = Link(20, 20, lambda at_ns: at_ns + rng.random() * jitter_ms * MS).run(30)
    assert link.share(30) > 0.9
    assert link.wait_ms(99, from_s=1.5) < 20


def test_a_bad_start_is_made_good_within_two_seconds() -> None:
    """The first answers are late, as they are where a processor is busy: no round trip looks as short as it is."""
    link = Link(20, 20, lambda at_ns: at_ns + 25 * MS if at_ns < 0.8e9 else at_ns).run(12)
    assert link.wait_ms(50, from_s=0.5) < 15
    assert link.wait_ms(99, from_s=2.0) < 7.5
    assert abs(link.pacer.rtt_min_ns - 21.6 * MS) < 1 * MS


def test_a_probe_at_a_bad_time_changes_nothing() -> None:
    """The one at 6 s finds the node busy for 60 ms; the round trip of before holds for another ten seconds."""
    link = Link(20, 20, lambda at_ns: max(at_ns, 6.12e9) if 6.0e9 < at_ns < 6.12e9 else at_ns).run(14)
    assert link.wait_ms(99, from_s=6.5) < 6.5


def test_a_longer_way_is_noticed_after_two_probes() -> None:
    link = Link(20, 20).run(2)
    link._rtt_ns = 60 * MS
    link.run(40)
    assert link.pacer.rtt_min_ns > 60 * MS
    before = link.num_sent
    link.run(50)
    assert (link.num_sent - before) * link._ns_per_byte > 0.93 * 10e9


def test_the_ramp_after_a_pause_is_not_taken_for_a_slow_link() -> None:
    link = Link(100, 50).run(4)
    rate, window = link.pacer.rate_bps, link.pacer.window_bytes
    while link._answers:  # a pause: all is answered
        at_ns, num_bytes = link._answers.popleft()
        link._now_ns = at_ns
        link.pacer.received(num_bytes, int(at_ns))
    end_s = link._now_ns / 1e9 + 0.2
    link.run(end_s)
    assert link.pacer.rate_bps > 0.97 * rate and link.pacer.window_bytes > 0.97 * window
