"""Round trip and rate of the link between a child and its parent: some empty messages, and some short trains each way.

    rate = bytes that arrived after the first message of a train / time from the first arrival to the last

The receiver counts, so neither the way's length nor what the sender's kernel buffers matters. The first train says how
long the others may be: TRAIN_S of the link, at most MAX_TRAIN_BYTES. Their median counts: a processor that was busy
elsewhere makes a train look slow, or, where that hid its beginning, fast. What samples bring over the same link
meanwhile is counted too, so that a link that serves is not taken for a slower one.

Behind a link far longer than its rate can fill with gRPC's first window (64 KiB by round trip), a train measures that
window; TCP's slow start counts as well.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from tierline.core.errors import BadFrame
from tierline.core.profile import RateFrom
from tierline.core.protocols import Clock
from tierline.v1 import fleet_pb2 as pb

NUM_PINGS = 7
NUM_TRAINS = 5
FIRST_TRAIN_BYTES = 16 << 10
MAX_TRAIN_BYTES = 512 << 10
TRAIN_S = 0.1
NUM_SOUNDING_PINGS, SOUNDING_S, MIN_SOUNDING_BYTES, MAX_SOUNDING_BYTES = 3, 0.05, 6 << 10, 64 << 10
"""What is sent now and then while a hierarchy serves."""
MAX_PROBE_BYTES = 4 * NUM_TRAINS * MAX_TRAIN_BYTES
"""More in one call is refused."""
_PIECES = 16
_MIN_PIECE_BYTES = 2048

Count = Callable[[], int]
"""Bytes that samples have brought over the link until now."""


@dataclass(frozen=True, slots=True)
class LinkRates:
    """What a probe found."""

    rtt_ns: int
    """Shortest."""
    up_bps: float
    down_bps: float
    over_s: float
    """How long bytes were counted, both ways together."""
    up_from: RateFrom


class _Train:
    """Counts what arrives of one train."""

    def __init__(self, clock: Clock, count: Count) -> None:
        self._clock, self._count = clock, count
        self._first_ns = self._before = self._num_bytes = 0
        self._is_open = False

    def arrived(self, num_bytes: int) -> None:
        if not self._is_open:
            self._is_open, self._first_ns, self._before, self._num_bytes = True, self._clock.now_ns(), self._count(), 0
        else:
            self._num_bytes += num_bytes

    def ended(self) -> tuple[int, int]:
        """Bytes after the first message, and the time they took."""
        self._is_open = False
        return self._num_bytes + self._count() - self._before, max(1, self._clock.now_ns() - self._first_ns)


async def probe_link(call: Any, node: str, clock: Clock, count: Count, known: tuple[float, float]) -> LinkRates:
    """The child's half, over a stream of `Fleet.Probe`. Errors of gRPC pass through. Raises BadFrame.

    `known`: the rate up and over how many seconds it was counted, where samples told it; then no train goes up.
    """
    rtt_ns = await _shortest_ping(call, node, clock, NUM_PINGS)

    async def up(num_bytes: int) -> tuple[int, int]:
        return await _train_up(call, num_bytes)

    async def down(num_bytes: int) -> tuple[int, int]:
        train = _Train(clock, count)
        await call.write(pb.ProbeChunk(want_bytes=num_bytes))
        while True:
            piece = await _next(call)
            train.arrived(piece.ByteSize())
            if piece.is_last:
                return train.ended()

    async def rate(send: Callable[[int], Awaitable[tuple[int, int]]]) -> tuple[float, float]:
        num_bytes, ns = await send(FIRST_TRAIN_BYTES)
        length = min(MAX_TRAIN_BYTES, max(FIRST_TRAIN_BYTES, int(num_bytes / ns * 1e9 * TRAIN_S)))
        trains = [await send(length) for _ in range(NUM_TRAINS)]
        return median(num_bytes * 8e9 / ns for num_bytes, ns in trains), sum(ns for _, ns in trains) / 1e9

    up_bps, up_s = known if known[0] else await rate(up)
    down_bps, down_s = await rate(down)
    await call.done_writing()
    await call.read()  # the parent's end of it
    return LinkRates(rtt_ns, up_bps, down_bps, up_s + down_s, "payloads" if known[0] else "probe")


async def sound_link(call: Any, node: str, clock: Clock, known_bps: float) -> tuple[int, float]:
    """As `probe_link`, at the price of a few messages and two short trains up: shortest round trip in nanoseconds, and
    bits per second up.

    `known_bps`: where samples tell the rate, no train goes up. The first train is so short that a link which has become
    slow keeps its heartbeats; the second takes SOUNDING_S of the link, if that is more.
    """
    rtt_ns, up_bps = await _shortest_ping(call, node, clock, NUM_SOUNDING_PINGS), known_bps
    if not up_bps:
        num_bytes, ns = await _train_up(call, MIN_SOUNDING_BYTES)
        length = min(MAX_SOUNDING_BYTES, int(num_bytes / ns * 1e9 * SOUNDING_S))
        if length > MIN_SOUNDING_BYTES:
            num_bytes, ns = await _train_up(call, length)
        up_bps = num_bytes * 8e9 / ns
    await call.done_writing()
    await call.read()  # the parent's end of it
    return rtt_ns, up_bps


async def answer_probe(chunks: AsyncIterator[Any], clock: Clock, count: Count) -> AsyncIterator[Any]:
    """The parent's half. Raises BadFrame for more than a probe may ask for."""
    train, moved = _Train(clock, count), 0
    async for chunk in chunks:
        moved += len(chunk.data) + chunk.want_bytes
        if moved > MAX_PROBE_BYTES:
            raise BadFrame(f"a probe of more than {MAX_PROBE_BYTES} bytes")
        if chunk.data:
            train.arrived(chunk.ByteSize())
            if chunk.is_last:
                num_bytes, ns = train.ended()
                yield pb.ProbeChunk(num_bytes=num_bytes, ns=ns)
        elif chunk.want_bytes:
            for piece in _pieces(chunk.want_bytes):
                yield piece
        else:
            yield pb.ProbeChunk()


async def _shortest_ping(call: Any, node: str, clock: Clock, num: int) -> int:
    trips_ns = []
    for _ in range(num):
        began_ns = clock.now_ns()
        await call.write(pb.ProbeChunk(node=node))
        await _next(call)
        trips_ns.append(clock.now_ns() - began_ns)
    return min(trips_ns)


async def _train_up(call: Any, num_bytes: int) -> tuple[int, int]:
    """Bytes that arrived after the first message, and the nanoseconds they took."""
    for piece in _pieces(num_bytes):
        await call.write(piece)
    reply = await _next(call)
    return reply.num_bytes, max(1, reply.ns)


def _pieces(num_bytes: int) -> list[Any]:
    size = max(_MIN_PIECE_BYTES, num_bytes // _PIECES)
    lengths = [min(size, num_bytes - start) for start in range(0, num_bytes, size)]
    last = len(lengths) - 1
    return [pb.ProbeChunk(data=bytes(length), is_last=at == last) for at, length in enumerate(lengths)]


async def _next(call: Any) -> Any:
    reply = await call.read()
    if not isinstance(reply, pb.ProbeChunk):
        await call.code()  # raises what the peer ended the stream with
        raise BadFrame("the parent ended a probe before its answer")
    return reply
