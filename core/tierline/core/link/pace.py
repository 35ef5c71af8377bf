"""How much bulk may be under way, so that what shares the link keeps its latency. No I/O, no clock of its own.

gRPC has no priorities: whatever was handed over goes first in, first out. So only that much is handed over as the link
needs to be kept busy: 1.25 times its rate times its shortest round trip, between 16 KiB and 4 MiB, in pieces of a
quarter of it. Rate and round trip are read off the answers to pieces; the shortest round trip is measured anew now and
then, by one short piece on a link that was left to run empty.
"""

from __future__ import annotations

from collections import deque

MIN_WINDOW, MAX_WINDOW = 16 << 10, 4 << 20
GAIN = 1.25
_START_GAIN = 2.0
"""Until round trips grow, which says that the link is full."""
_PROBE_BYTES = MIN_WINDOW // 4
_PROBE_EVERY_NS = 10_000_000_000


class Pacer:
    """Bookkeeping of one direction of one stream, in bytes and nanoseconds."""

    def __init__(self) -> None:
        self.window_bytes = MIN_WINDOW
        self.rate_bps = 0.0
        """Of bits per second, as measured; 0 until known."""
        self.rtt_min_ns = 0
        self._num_sent = self._num_received = 0
        self._under_way: deque[tuple[int, int, int]] = deque()  # bytes sent with it, received by then, when
        self._starting = True
        self._probe_at_ns: int | None = None

    @property
    def unacked_bytes(self) -> int:
        return self._num_sent - self._num_received

    def room(self, now_ns: int) -> int:
        """Length of the next piece, at most; 0: wait for an answer."""
        if self.unacked_bytes == 0:
            return _PROBE_BYTES
        if self._probe_at_ns is not None and now_ns >= self._probe_at_ns:
            return 0  # let it run empty
        size = max(_PROBE_BYTES, self.window_bytes // 4)
        return size if self.unacked_bytes + size <= self.window_bytes else 0

    def sent(self, num_bytes: int, now_ns: int) -> None:
        if self._probe_at_ns is not None and now_ns >= self._probe_at_ns and self.unacked_bytes == 0:
            self.rtt_min_ns, self._probe_at_ns = 0, None
        self._num_sent += num_bytes
        self._under_way.append((self._num_sent, self._num_received, now_ns))

    def received(self, num_bytes: int, now_ns: int) -> bool:
        """The peer has `num_bytes` in all. False where that many were never sent, or it had more already."""
        if not self._num_received <= num_bytes <= self._num_sent:
            return False
        self._num_received = num_bytes
        while self._under_way and self._under_way[0][0] <= num_bytes:
            _, received_then, sent_ns = self._under_way.popleft()
            self._measure(num_bytes - received_then, max(1, now_ns - sent_ns), now_ns)
        return True

    def _measure(self, num_bytes: int, rtt_ns: int, now_ns: int) -> None:
        if self.rtt_min_ns == 0 or rtt_ns < self.rtt_min_ns:
            self.rtt_min_ns = rtt_ns
        if self._probe_at_ns is None:
            self._probe_at_ns = now_ns + _PROBE_EVERY_NS
        rate_bps = num_bytes * 8e9 / rtt_ns
        # A lower rate may only mean that there was little to send: believed slowly.
        self.rate_bps = rate_bps if rate_bps > self.rate_bps else self.rate_bps + (rate_bps - self.rate_bps) / 16
        if rtt_ns > GAIN * self.rtt_min_ns and self.window_bytes > MIN_WINDOW:
            self._starting = False
        gain = _START_GAIN if self._starting else GAIN
        wanted = int(gain * self.rate_bps / 8e9 * self.rtt_min_ns)
        self.window_bytes = min(MAX_WINDOW, max(MIN_WINDOW, wanted))
