"""How long Sections take while samples are answered: what a node's speed is judged by."""

from __future__ import annotations

from collections import Counter, deque
from statistics import median
from typing import Any

WINDOW_NS = 10_000_000_000
MAX_RUNS = 256
ENOUGH_RUNS = 8
"""So many within the window make a value."""


class SectionTimes:
    """Bookkeeping of one structure's Sections by level. No clock of its own."""

    def __init__(self) -> None:
        self._runs: dict[int, deque[tuple[int, int, int]]] = {}
        """By level: when, rows of the batch, how long."""

    def ran(self, level: int, num_rows: int, ns: int, now_ns: int) -> None:
        runs = self._runs.get(level)
        if runs is None:
            runs = self._runs[level] = deque(maxlen=MAX_RUNS)
        runs.append((now_ns, num_rows, ns))

    def record(self, now_ns: int) -> dict[str, dict[str, Any]]:
        """By level: the median of the latest runs of the batch size that was most frequent, as JSON values."""
        found = {}
        for level, runs in self._runs.items():
            late = [(rows, ns) for when_ns, rows, ns in runs if when_ns >= now_ns - WINDOW_NS]
            sizes = Counter(rows for rows, _ in late)
            size, num = max(sizes.items(), key=lambda item: (item[1], -item[0]), default=(0, 0))
            if num >= ENOUGH_RUNS:
                ms = median(ns for rows, ns in late if rows == size) / 1e6
                found[str(level)] = {"rows": size, "ms": round(ms, 4), "runs": num}
        return found
