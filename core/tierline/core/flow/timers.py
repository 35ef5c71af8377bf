"""What is due when, for samples in flight. No clock of its own."""

from __future__ import annotations

import heapq
from collections.abc import Container, Hashable, Iterator
from typing import Generic, TypeVar

_K = TypeVar("_K", bound=Hashable)


class Timers(Generic[_K]):
    """A heap of (when, sample, kind); entries of samples that are gone are dropped when they pile up."""

    def __init__(self, in_flight: Container[_K]) -> None:
        self._in_flight = in_flight
        self._heap: list[tuple[int, int, _K, str]] = []
        self._count = 0
        self._compact_at = 1024

    def add(self, when_ns: int, sample: _K, kind: str) -> None:
        self._count += 1
        heapq.heappush(self._heap, (when_ns, self._count, sample, kind))
        if len(self._heap) > self._compact_at:
            # Most belong to samples long answered: memory follows what is in flight, not what has passed.
            self._heap = [entry for entry in self._heap if entry[2] in self._in_flight]
            heapq.heapify(self._heap)
            self._compact_at = max(1024, 2 * len(self._heap))

    @property
    def next_ns(self) -> int | None:
        return self._heap[0][0] if self._heap else None

    def due(self, now_ns: int) -> Iterator[tuple[_K, str]]:
        """Take what is due, in order."""
        while self._heap and self._heap[0][0] <= now_ns:
            _, _, sample, kind = heapq.heappop(self._heap)
            yield sample, kind
