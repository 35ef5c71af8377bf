"""What a child asks of its parent beside samples: files by digest, the link's rates, and a place for its reports."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc.aio

from tierline.core.bundle import digest_of
from tierline.core.errors import DigestMismatch, LinkTimeout, LinkUnavailable
from tierline.core.link.dial import Dialler
from tierline.core.link.measured import received_bytes
from tierline.core.link.probe import LinkRates, probe_link, sound_link
from tierline.core.link.status import from_rpc
from tierline.core.protocols import Clock
from tierline.v1 import fleet_pb2 as pb

PROBE_TIMEOUT_S = REPORT_TIMEOUT_S = FETCH_TIMEOUT_S = 20.0
_MIN_PIECE_BYTES, _MAX_PIECE_BYTES = 4 << 10, 256 << 10
_T = TypeVar("_T")
_LONGEST_TRIP_NS = 1_000_000_000
"""On a way longer than this pieces stay small."""


class Uplink:
    """Calls over the connection that a Dialler keeps. Each raises the TierlineError that a failed call stands for,
    LinkUnavailable while there is no connection or where it is lost."""

    def __init__(self, node: str, dialler: Dialler, clock: Clock) -> None:
        self._node, self._dialler, self._clock = node, dialler, clock
        self._piece_bytes, self._trip_ns = _MIN_PIECE_BYTES, _LONGEST_TRIP_NS

    async def fetch(self, digest: str) -> bytes:
        """A file that the parent has, in pieces that leave the link to samples about half of the time.

        A piece is asked for when the one before it has come. It is as large as takes twice the shortest trip: the link
        is idle for the other half. Raises DigestMismatch, BundleError.
        """
        pieces: list[bytes] = []
        offset = 0
        with self._calling() as fleet:
            while True:
                asked, began_ns = self._piece_bytes, self._clock.now_ns()
                request = pb.FetchRequest(digest=digest, offset=offset, num_bytes=asked)
                piece = b"".join([chunk.data async for chunk in fleet.Fetch(request, timeout=FETCH_TIMEOUT_S)])
                pieces.append(piece)
                offset += len(piece)
                if len(piece) < asked:
                    break
                self._pace(self._clock.now_ns() - began_ns)
        raw = b"".join(pieces)
        if digest_of(raw) != digest:
            raise DigestMismatch(f"the parent sent {digest_of(raw)[:12]}..., asked for {digest[:12]}...")
        return raw

    def _pace(self, trip_ns: int) -> None:
        self._trip_ns = min(self._trip_ns, trip_ns)
        if trip_ns > 3 * self._trip_ns:
            self._piece_bytes = max(_MIN_PIECE_BYTES, self._piece_bytes // 2)
        elif trip_ns < 2 * self._trip_ns:
            self._piece_bytes = min(_MAX_PIECE_BYTES, self._piece_bytes * 2)

    async def report(self, document: bytes) -> None:
        """Hand a report to the parent."""
        report = pb.MeasureReport(node=self._node, document=document)
        with self._calling() as fleet:
            await fleet.Report(report, timeout=REPORT_TIMEOUT_S)

    async def probe(self) -> LinkRates:
        """Measure the link: it is full for about half a second each way, but not upwards where samples fill it."""
        link = self._dialler.link
        return await self._probing(
            lambda call: probe_link(call, self._node, self._clock, received_bytes(link), link.sent_bps())
        )

    async def sound(self, known_bps: float) -> tuple[int, float]:
        """Shortest round trip in nanoseconds and bits per second up, for the price of some KiB; see `sound_link`."""
        return await self._probing(lambda call: sound_link(call, self._node, self._clock, known_bps))

    async def _probing(self, ask: Callable[[Any], Awaitable[_T]]) -> _T:
        with self._calling() as fleet:
            call: Any = fleet.Probe()
            try:
                # A call begun on a channel that is just being closed never ends, whatever its deadline.
                return await asyncio.wait_for(ask(call), PROBE_TIMEOUT_S)
            except asyncio.TimeoutError:
                raise LinkTimeout(f"{self._dialler.address}: no probe came through in {PROBE_TIMEOUT_S:g} s") from None
            finally:
                call.cancel()

    @contextmanager
    def _calling(self) -> Iterator[Any]:
        fleet = self._dialler.fleet
        try:
            yield fleet
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, self._dialler.address) from error
        except asyncio.InvalidStateError:  # written to a call that has just ended
            raise LinkUnavailable(f"{self._dialler.address}: the connection was lost") from None
        except asyncio.CancelledError:
            if self._dialler.is_on(fleet):
                raise
            # gRPC cancels the calls of a channel that is closed, and with them whoever waits for one.
            raise LinkUnavailable(f"{self._dialler.address}: the connection was lost") from None
