"""How long the nodes above take to answer, from their recent answers: what would come too late is not asked for."""

from __future__ import annotations

from collections.abc import Iterable

GAIN = 8
"""Answers that the mean remembers, roughly; deviations are remembered half as long."""
FADE = 16
"""Each sample that is kept back makes the estimate a bit smaller, so that the way up is tried again in time."""


class Above:
    """Mean and mean deviation of the time from sending a sample to its verdict, as TCP keeps them for round trips
    (Jacobson 1988, Congestion Avoidance and Control, appendix A). No clock of its own."""

    def __init__(self) -> None:
        self._mean_ns = self._deviation_ns = 0

    @property
    def expected_ns(self) -> int:
        """An answer is expected within this time; 0 until one has come."""
        return self._mean_ns + self._deviation_ns

    def took(self, ns: int) -> None:
        """A verdict came after so long; or none did, and its sample's time was up."""
        if not self._mean_ns:
            self._mean_ns, self._deviation_ns = ns, 0
            return
        error_ns = ns - self._mean_ns
        self._mean_ns += error_ns // GAIN
        self._deviation_ns += (abs(error_ns) - self._deviation_ns) // (GAIN // 2)

    def is_too_late(self, now_ns: int, deadline_ns: int) -> bool:
        """Whether a sample sent now would not be answered in time."""
        if now_ns + self.expected_ns <= deadline_ns:
            return False
        self._mean_ns -= self._mean_ns // FADE
        self._deviation_ns -= self._deviation_ns // FADE
        return True


def budgets_ms(deadlines_ns: Iterable[int], now_ns: int, rtt_ns: int) -> list[float]:
    """What is left to the parent: half a round trip, and at least 1 ms, is kept for the way back."""
    ends_ns = now_ns + max(1_000_000, rtt_ns // 2)
    return [max(0.0, (deadline_ns - ends_ns) / 1e6) for deadline_ns in deadlines_ns]
