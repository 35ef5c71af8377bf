"""The rate of one direction of a link, read off the samples that fill it. No I/O, no clock of its own.

A message that was sent before the one ahead of it had left the link found the link busy; so from one acknowledgement to
the next the link did nothing but carry what the second one acknowledges, if all of that was sent a shortest round trip
before the first:

    rate = sum of such bytes / sum of the times between such acknowledgements

The peer's work and the way's length delay all acknowledgements alike and so do not count; a peer that takes messages in
more slowly than the link brings them does. While samples leave gaps on the link nothing is known (0), however long.
"""

from __future__ import annotations

from collections import deque

MIN_MESSAGE_BYTES = 1024
"""Smaller messages are not looked at: they would cost more than they tell."""
WINDOW_NS = 10_000_000_000
ENOUGH_NS, ENOUGH_BYTES = 200_000_000, 32 << 10
"""So much within the window makes a rate."""


class RateMeter:
    """Bookkeeping of one sender."""

    def __init__(self) -> None:
        self._under_way: deque[tuple[int, int, int]] = deque()
        """Number, bytes, when sent."""
        self._busy: deque[tuple[int, int, int]] = deque()
        """Until when, for how long, how many bytes."""
        self._busy_ns = self._busy_bytes = 0
        self._former_ns = 0
        self._shortest_ns = 0

    @property
    def waits(self) -> bool:
        """Whether an acknowledgement can tell anything."""
        return bool(self._under_way)

    def sent(self, seq: int, num_bytes: int, now_ns: int) -> None:
        """A message leaves."""
        self._under_way.append((seq, num_bytes, now_ns))

    def acknowledged(self, seq: int, now_ns: int) -> None:
        """The peer has everything up to this number."""
        num_bytes = sent_ns = 0
        while self._under_way and self._under_way[0][0] <= seq:
            _, size, sent_ns = self._under_way.popleft()
            num_bytes += size
        if not num_bytes:
            return
        trip_ns, former_ns, self._former_ns = now_ns - sent_ns, self._former_ns, now_ns
        self._shortest_ns = min(trip_ns, self._shortest_ns) if self._shortest_ns else trip_ns
        if former_ns and sent_ns + self._shortest_ns <= former_ns:
            self._busy.append((now_ns, now_ns - former_ns, num_bytes))
            self._busy_ns += now_ns - former_ns
            self._busy_bytes += num_bytes
        self._age(now_ns)

    def reset(self) -> None:
        """A new connection: what was under way is lost, and the way may be another."""
        self._under_way.clear()
        self._former_ns = self._shortest_ns = 0

    def bps(self, now_ns: int) -> tuple[float, float]:
        """Bits per second, and the seconds over which they were counted; (0, 0) where samples did not tell."""
        self._age(now_ns)
        if self._busy_ns < ENOUGH_NS or self._busy_bytes < ENOUGH_BYTES:
            return 0.0, 0.0
        return self._busy_bytes * 8e9 / self._busy_ns, self._busy_ns / 1e9

    def _age(self, now_ns: int) -> None:
        while self._busy and self._busy[0][0] < now_ns - WINDOW_NS:
            _, ns, num_bytes = self._busy.popleft()
            self._busy_ns -= ns
            self._busy_bytes -= num_bytes
