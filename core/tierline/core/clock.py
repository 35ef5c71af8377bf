"""Time of one node. Durations only; wall-clock time is for log lines."""

from __future__ import annotations

import time


class MonotonicClock:
    """The machine's monotonic clock."""

    now_ns = staticmethod(time.perf_counter_ns)
    """Read a dozen times per sample and node: no frame of Python around it."""


class ManualClock:
    """A clock that tests turn by hand."""

    def __init__(self, now_ns: int = 0) -> None:
        self._now_ns = now_ns

    def now_ns(self) -> int:
        return self._now_ns

    def advance(self, ns: int) -> None:
        self._now_ns += ns
