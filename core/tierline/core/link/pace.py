"""How much bulk may be under way, so that what shares the link keeps its latency. No I/O, no clock of its own.

gRPC has no priorities: whatever was handed over goes first in, first out. So only that much is handed over as the link
needs to be kept busy: about 1.2 times its rate times its shortest round trip, between 16 KiB and 4 MiB, in pieces of an
eighth of it. Rate and round trip are read off the answers to pieces; the shortest round trip is measured anew now and
then, by one short piece on a link that was left to run empty: soon after the start, when little is known, later seldom.

A rate is what arrived during a piece's round trip, by that time less the piece's own on the link. On a full link this
is about 1.15 times the rate, since one of eight pieces is taken out; where the window keeps the link from being full,
it falls short by less than GAIN, and so the window grows.
"""

from __future__ import annotations

from collections import deque

MIN_WINDOW, MAX_WINDOW = 16 << 10, 4 << 20
GAIN = 1.05
_FULL = 1.25
"""Round trips so much longer than the shortest say that the link is full."""
_START_GAIN = 2.0
"""Until the link is full."""
_RTT_FLOOR_NS = 5_000_000
"""Where round trips are shorter, processors, not the link, set the pace: small pieces would cost more than they save.
So much waiting is allowed for, and pieces are quarters."""
_PROBE_BYTES = MIN_WINDOW // 4
_FIRST_PROBE_NS, _PROBE_EVERY_NS = 1_000_000_000, 10_000_000_000
"""The time between probes grows fourfold from the one to the other."""


class Pacer:
    """Bookkeeping of one direction of one stream, in bytes and nanoseconds."""

    def __init__(self) -> None:
        self.window_bytes = MIN_WINDOW
        self.rate_bps = 0.0
        """Bits per second, as measured (on a full link 1.15 times too high); 0 until known."""
        self._rtt_ns = self._former_rtt_ns = 0
        """The shortest since the last probe, and between it and the one before: a probe may come at a bad time."""
        self._num_sent = self._num_received = 0
        self._under_way: deque[tuple[int, int, int, int]] = deque()
        """Of each piece: bytes sent with it, its own, bytes received by then, when."""
        self._waited_for = 0
        """Bytes sent when there was more to send than room."""
        self._starting = True
        self._ramp_bytes = MIN_WINDOW
        """After a pause the window opens as answers come, lest all of it stand in the queue at once."""
        self._probe_at_ns: int | None = None
        self._probe_in_ns = _FIRST_PROBE_NS

    @property
    def rtt_min_ns(self) -> int:
        """The shortest round trip; 0 until known."""
        return min(self._rtt_ns or self._former_rtt_ns, self._former_rtt_ns or self._rtt_ns)

    @property
    def unacked_bytes(self) -> int:
        return self._num_sent - self._num_received

    def room(self, now_ns: int) -> int:
        """Length of the next piece, at most; 0: wait for an answer."""
        if self.unacked_bytes == 0:
            self._ramp_bytes = MIN_WINDOW if self.rtt_min_ns > _RTT_FLOOR_NS else MAX_WINDOW
            return _PROBE_BYTES
        if self._probe_at_ns is not None and now_ns >= self._probe_at_ns:
            return 0  # let it run empty
        window_bytes = min(self.window_bytes, self._ramp_bytes)
        size = max(_PROBE_BYTES, window_bytes // (8 if self.rtt_min_ns > _RTT_FLOOR_NS else 4))
        if self.unacked_bytes + size // 2 <= window_bytes:  # pieces of other lengths are under way: to the nearest
            return size
        if self._ramp_bytes >= self.window_bytes:  # else it is the ramp that keeps the rate low
            self._waited_for = self._num_sent
        return 0

    def sent(self, num_bytes: int, now_ns: int) -> None:
        if self._probe_at_ns is not None and now_ns >= self._probe_at_ns and self.unacked_bytes == 0:
            self._former_rtt_ns, self._rtt_ns, self._probe_at_ns = self._rtt_ns, 0, None
        self._num_sent += num_bytes
        self._under_way.append((self._num_sent, num_bytes, self._num_received, now_ns))

    def received(self, num_bytes: int, now_ns: int) -> bool:
        """The peer has `num_bytes` in all. False where that many were never sent, or it had more already."""
        if not self._num_received <= num_bytes <= self._num_sent:
            return False
        self._ramp_bytes += num_bytes - self._num_received
        self._num_received = num_bytes
        while self._under_way and self._under_way[0][0] <= num_bytes:
            sent, own_bytes, received_then, sent_ns = self._under_way.popleft()
            self._measure(num_bytes - received_then, own_bytes, max(1, now_ns - sent_ns), sent <= self._waited_for)
        if self._probe_at_ns is None:
            self._probe_at_ns = now_ns + self._probe_in_ns
            self._probe_in_ns = min(4 * self._probe_in_ns, _PROBE_EVERY_NS)
        return True

    def _measure(self, num_bytes: int, own_bytes: int, rtt_ns: int, is_full: bool) -> None:
        """`is_full`: the window was used up, so that a low rate is the link's."""
        if self._rtt_ns == 0 or rtt_ns < self._rtt_ns:
            self._rtt_ns = rtt_ns
        own_ns = min(own_bytes * 8e9 / self.rate_bps, rtt_ns / 2) if self.rate_bps else 0.0
        way_ns = rtt_ns - own_ns
        rate_bps = num_bytes * 8e9 / way_ns
        if rate_bps > self.rate_bps:
            self.rate_bps = rate_bps
        elif is_full:
            self.rate_bps += (rate_bps - self.rate_bps) / 16
        rtt_ns = max(self.rtt_min_ns, _RTT_FLOOR_NS)
        if way_ns > _FULL * rtt_ns and self.window_bytes > MIN_WINDOW:
            self._starting = False
        gain = _START_GAIN if self._starting else GAIN
        wanted = int(gain * self.rate_bps / 8e9 * rtt_ns)
        self.window_bytes = min(MAX_WINDOW, max(MIN_WINDOW, wanted))
