"""One direction of an emulated link in virtual time: no sockets, no clock, no sleeping.

All connections of a link share one queue, as they would share a radio or a cable. (With a queue per connection, a bulk
transfer would never delay its neighbours: an artefact.) A packet that enters at `now` starts when the link is free,
occupies it for `bytes / rate`, plus a retransmission time when it stalls, and arrives `rtt / 2` later:

    start = max(now, free);  free = start + bytes / rate [+ stall];  due = free + rtt / 2
"""

from __future__ import annotations

import math
import random
from collections import deque
from typing import Generic, TypeVar

from tierline.cli.relay.profile import PACKET_BYTES, LinkProfile

T = TypeVar("T")

_PIECE_S = 0.00025
_RESUME_SHARE = 0.75


class ShapedQueue(Generic[T]):
    """A bounded first-in-first-out queue of (target, bytes); times are seconds of any monotonic clock.

    The bound counts bytes that wait for the link or are being sent, not those on their way. The caller stops reading
    when `enqueue` returns False; what it had read already is accepted, nothing is ever dropped.
    """

    def __init__(self, profile: LinkProfile, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._free_s = -math.inf
        self._travelling: deque[tuple[float, T, bytes]] = deque()
        self._sending: deque[tuple[float, int]] = deque()
        self._backlog_bytes = 0
        self.num_stalls = 0
        self.profile = profile

    @property
    def profile(self) -> LinkProfile:
        return self._profile

    @profile.setter
    def profile(self, profile: LinkProfile) -> None:
        """Change the link; what is queued keeps its times, and nothing overtakes it."""
        self._profile = profile
        # Small enough that a slow link delivers packet by packet, large enough that a fast one costs little work.
        self._piece_bytes = max(PACKET_BYTES, int(profile.bytes_per_s * _PIECE_S))
        self._packets_until_stall = self._draw_gap()

    def enqueue(self, target: T, data: bytes, now_s: float) -> bool:
        """Queue bytes (none: an end-of-stream mark, which keeps its place). True while there is room for more."""
        for start in range(0, max(len(data), 1), self._piece_bytes):
            piece = data[start : start + self._piece_bytes]
            self._free_s = max(now_s, self._free_s) + len(piece) / self._profile.bytes_per_s
            if piece:
                self._free_s += self._stalls(len(piece)) * self._profile.stall_s
                self._sending.append((self._free_s, len(piece)))
                self._backlog_bytes += len(piece)
            self._travelling.append((self._free_s + self._profile.delay_s, target, piece))
        return self.backlog_bytes(now_s) < self._profile.capacity_bytes

    def due(self, now_s: float) -> list[tuple[T, bytes]]:
        """Remove and return what has arrived by now, in order."""
        arrived = []
        while self._travelling and self._travelling[0][0] <= now_s:
            _, target, data = self._travelling.popleft()
            arrived.append((target, data))
        return arrived

    def next_due_s(self) -> float:
        """When the next bytes arrive; infinity when the link is empty."""
        return self._travelling[0][0] if self._travelling else math.inf

    def backlog_bytes(self, now_s: float) -> int:
        """Bytes that wait for the link or are being sent."""
        while self._sending and self._sending[0][0] <= now_s:
            self._backlog_bytes -= self._sending.popleft()[1]
        return self._backlog_bytes

    def room_at_s(self, now_s: float) -> float:
        """When the backlog will have fallen to three quarters of the bound: the time to read again."""
        excess = self.backlog_bytes(now_s) - _RESUME_SHARE * self._profile.capacity_bytes
        room_s = now_s
        for sent_s, num_bytes in self._sending:
            if excess <= 0:
                break
            room_s, excess = sent_s, excess - num_bytes
        return room_s

    def clear(self) -> None:
        """Lose everything: the link was cut."""
        self._travelling.clear()
        self._sending.clear()
        self._backlog_bytes = 0
        self._free_s = -math.inf

    def _stalls(self, num_bytes: int) -> int:
        """How many of the packets in `num_bytes` stall."""
        self._packets_until_stall -= math.ceil(num_bytes / PACKET_BYTES)
        stalls = 0
        while self._packets_until_stall <= 0:
            stalls += 1
            self._packets_until_stall += self._draw_gap()
        self.num_stalls += stalls
        return stalls

    def _draw_gap(self) -> float:
        """Packets up to and including the next one that stalls: geometric, by inversion."""
        share = self._profile.stall_share
        if share == 0:
            return math.inf
        return 1 + math.floor(math.log(1 - self._random.random()) / math.log1p(-share))
