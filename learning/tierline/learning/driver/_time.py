"""Virtual time: a queue of events, and links that take time. Integers of nanoseconds, so that no run can differ."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from tierline.learning.driver.world import LinkSpec


def to_ns(seconds: float) -> int:
    return round(seconds * 1e9)


@dataclass(slots=True)
class Pipe:
    """A link in use: first in, first out; a message leaves when those before it have left."""

    spec: LinkSpec
    free_ns: int = 0

    def arrival_ns(self, now_ns: int, num_bytes: int) -> int:
        """When `num_bytes` handed over now will have arrived; takes the link until they have left."""
        rate = self.spec.bandwidth_bps
        busy_ns = to_ns(num_bytes * 8 / rate) if rate else 0
        self.free_ns = max(now_ns, self.free_ns) + busy_ns
        return self.free_ns + to_ns(self.spec.latency_s)


@dataclass(slots=True)
class Schedule:
    """Events in the order of their time; those of one time in the order they were planned."""

    now_ns: int = 0
    _heap: list[tuple[int, int, Callable[[], None]]] = field(default_factory=list)
    _num_planned: int = 0

    def at(self, time_ns: int, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (time_ns, self._num_planned, action))
        self._num_planned += 1

    def run(self, done: Callable[[], bool]) -> None:
        """Carry out events until none is left, or `done`. After an exception too the rest stays planned."""
        while self._heap and not done():
            self.now_ns, _, action = heapq.heappop(self._heap)
            action()
