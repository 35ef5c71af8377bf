"""The child's half of a link: dials out, joins, streams, and comes back by itself after a loss."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from tierline.core import errors
from tierline.core.link.channel import open_channel, reader, why_ended, writer
from tierline.core.link.fleet import (
    DEAD_AFTER_BEATS,
    HEARTBEAT_S,
    PROTOCOL,
    Beat,
    Fetch,
    Hello,
    NodeState,
    Order,
    Phase,
    Welcome,
)
from tierline.core.link.link import Link
from tierline.core.link.status import from_rpc
from tierline.core.link.tasks import end
from tierline.core.link.tls import TlsFiles
from tierline.core.link.tls_failure import explain_failure
from tierline.v1 import fleet_pb2, fleet_pb2_grpc

LOG = logging.getLogger("tierline.link")
EXCHANGE = "/tierline.v1.Inference/Exchange"
JOIN_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential with full jitter: the n-th wait is uniform in [0, min(cap, base 2^n)]."""

    base_s: float = 0.1
    cap_s: float = 2.0

    def wait_s(self, attempt: int, rng: random.Random) -> float:
        return rng.uniform(0.0, min(self.cap_s, self.base_s * 2.0 ** min(attempt, 16)))


class Dialler:
    """Keeps `link` connected to `address` until cancelled.

    `prepare(welcome, fetch)` runs after each join and before samples flow: it checks the Plan and loads what is
    missing. `on_change(is_up)` is called when the stream opens and when it is lost, `on_order(order, fetch)` with what
    the parent says of Plans.
    """

    def __init__(
        self,
        address: str,
        link: Link,
        *,
        hello: Callable[[], Hello],
        beat: Callable[[], Beat],
        prepare: Callable[[Welcome, Fetch], Awaitable[None]],
        on_change: Callable[[bool], None],
        on_order: Callable[[Order, Fetch], None],
        on_revoked: Callable[[tuple[str, ...]], None],
        on_measure: Callable[[bytes], None] = lambda order: None,
        on_jobs: Callable[[bytes], None] = lambda jobs: None,
        alongside: Callable[[grpc.aio.Channel, str], Awaitable[None]] | None = None,
        credentials: grpc.ChannelCredentials | None,
        tls: TlsFiles | None,
        rng: random.Random,
        backoff: Backoff | None = None,
    ) -> None:
        """`alongside(channel, address)` runs while the stream is open, and is cancelled with it."""
        self.address = address
        self.link = link
        self.last_error = ""
        self._hello, self._beat, self._prepare = hello, beat, prepare
        self._on_change, self._on_order, self._on_revoked = on_change, on_order, on_revoked
        self._on_measure = on_measure
        self._on_jobs, self._alongside = on_jobs, alongside
        self._fleet: Any = None
        self._credentials, self._tls = credentials, tls
        self._rng = rng
        self._backoff = backoff or Backoff()
        self._was_up = False
        self._news = asyncio.Event()

    def beat_now(self) -> None:
        """There is something to say before the next heartbeat is due."""
        self._news.set()

    @property
    def fleet(self) -> Any:
        """The parent's Fleet service. Raises LinkUnavailable while there is no connection."""
        if self._fleet is None:
            raise errors.LinkUnavailable(f"{self.address}: not connected")
        return self._fleet

    def is_on(self, fleet: Any) -> bool:
        """Whether this is still the connection."""
        return fleet is self._fleet

    async def run(self) -> None:
        """Connect, serve, reconnect. Raises when the parent refuses for good (PeerRejected, SecurityError, ...)."""
        attempt = 0
        while True:
            self._was_up = False
            try:
                await self._connect_once()
            except errors.PeerRejected:
                raise
            except (errors.LinkError, errors.CodecError) as error:
                # A link that worked is worth another try, whatever ended it; silence always is.
                if not (self._was_up or isinstance(error, (errors.LinkUnavailable, errors.LinkTimeout))):
                    raise
                if not self._was_up and self._tls is not None:
                    # gRPC calls a foreign certificate an unreachable peer.
                    cause = await explain_failure(self.address, self._tls.ca.read_bytes(), self._tls)
                    if isinstance(cause, errors.SecurityError):
                        raise cause from error
                if self.last_error != str(error):
                    LOG.info("%s; trying again", error)
                self.last_error = str(error)
            if self._was_up:
                attempt = 0
            await asyncio.sleep(self._backoff.wait_s(attempt, self._rng))
            attempt += 1

    async def _connect_once(self) -> None:
        async with open_channel(self.address, self._credentials) as channel:
            fleet: Any = fleet_pb2_grpc.FleetStub(channel)
            try:
                welcome = await self._join(fleet)
                await self._prepare(welcome, lambda digest: _fetch(fleet, digest))
                await self._stream(channel, fleet, welcome.heartbeat_s)
            except grpc.aio.AioRpcError as error:
                raise from_rpc(error, self.address) from error

    async def _join(self, fleet: Any) -> Welcome:
        hello = self._hello()
        reply = await fleet.Join(
            fleet_pb2.Hello(
                protocol_min=PROTOCOL,
                protocol_max=PROTOCOL,
                node=hello.node,
                tier=hello.tier,
                epoch=hello.epoch,
                views=hello.views,
                bundle_digest=hello.bundle_digest,
                codecs=hello.codecs,
                version=hello.version,
            ),
            timeout=JOIN_TIMEOUT_S,
        )
        return Welcome(
            parent=reply.parent,
            epoch=reply.epoch,
            plan=reply.plan.document,
            plan_digest=reply.plan.digest,
            bundle_digest=reply.bundle_digest,
            manifest=reply.manifest,
            run=reply.run,
            revoked=tuple(reply.revoked),
            heartbeat_s=reply.heartbeat_s or HEARTBEAT_S,
        )

    async def _stream(self, channel: grpc.aio.Channel, fleet: Any, heartbeat_s: float) -> None:
        call: Any = channel.stream_stream(EXCHANGE)()
        await call.write(self.link.opening())
        try:
            first = await asyncio.wait_for(call.read(), JOIN_TIMEOUT_S)
        except asyncio.TimeoutError:
            raise errors.LinkTimeout(f"{self.address}: did not open the stream in {JOIN_TIMEOUT_S:g} s") from None
        if first is grpc.aio.EOF:
            raise why_ended(await call.code(), await call.details(), self.address)
        self.link.opened(first)
        self._was_up, self._fleet = True, fleet
        self._on_change(True)
        attending = asyncio.create_task(self._attend(fleet, heartbeat_s))
        serving = asyncio.create_task(self.link.serve(reader(call), writer(call)))
        beside = [asyncio.ensure_future(self._alongside(channel, self.address))] if self._alongside else []
        try:
            done, _ = await asyncio.wait((attending, serving), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if serving in done:
                raise why_ended(await call.code(), await call.details(), self.address)
        finally:
            self._fleet = None
            call.cancel()
            await end((*beside, attending, serving))
            self._on_change(False)

    async def _attend(self, fleet: Any, heartbeat_s: float) -> None:
        """Send heartbeats; end with LinkUnavailable when the parent stops echoing them."""
        heard = asyncio.Event()

        async def beats() -> AsyncIterator[fleet_pb2.Heartbeat]:
            while True:
                beat = self._beat()
                switches = [_state_to_wire(state) for state in beat.switches]
                yield fleet_pb2.Heartbeat(
                    node=beat.node, epoch=beat.epoch, status=beat.status, rtt_ms=beat.rtt_ms, switches=switches
                )
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._news.wait(), heartbeat_s)
                self._news.clear()

        async def listen() -> None:
            async for directive in fleet.Attend(beats()):
                heard.set()
                self._on_revoked(tuple(directive.revoked))
                if directive.jobs:
                    self._on_jobs(directive.jobs)
                order = _order_from_wire(directive)
                if order is not None:
                    self._on_order(order, lambda digest: _fetch(fleet, digest))
                if directive.measure:
                    self._on_measure(directive.measure)

        listening = asyncio.create_task(listen())
        try:
            while True:
                await asyncio.wait((listening,), timeout=heartbeat_s * DEAD_AFTER_BEATS)
                if listening.done():
                    listening.result()
                    raise errors.LinkUnavailable(f"{self.address}: the parent ended the connection")
                if not heard.is_set():
                    raise errors.LinkUnavailable(
                        f"{self.address}: no sign of life for {heartbeat_s * DEAD_AFTER_BEATS:g} s"
                    )
                heard.clear()
        finally:
            await end((listening,))


_PHASES: dict[int, Phase] = {
    fleet_pb2.Switch.PHASE_PREPARE: "prepare",
    fleet_pb2.Switch.PHASE_COMMIT: "commit",
    fleet_pb2.Switch.PHASE_ABORT: "abort",
}


def _order_from_wire(directive: fleet_pb2.Directive) -> Order | None:
    """None where it is about no Plan, or says what this version does not know."""
    if directive.HasField("plan"):
        return Order("knobs", directive.plan.document)
    switch = directive.switch
    phase = _PHASES.get(switch.phase) if directive.HasField("switch") else None
    if phase is None:
        return None
    return Order(phase, switch.plan.document, switch.bundle_digest, switch.manifest, switch.first_seq)


def _state_to_wire(state: NodeState) -> fleet_pb2.SwitchState:
    return fleet_pb2.SwitchState(node=state.node, version=state.version, state=state.state, message=state.message)


async def _fetch(fleet: Any, digest: str) -> bytes:
    chunks = [chunk.data async for chunk in fleet.Fetch(fleet_pb2.FetchRequest(digest=digest))]
    return b"".join(chunks)
