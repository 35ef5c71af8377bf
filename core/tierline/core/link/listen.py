"""The parent's half: a gRPC server that admits children and keeps one Link per child."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import socket
import weakref
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Protocol

import grpc
import grpc.aio

from tierline.core import errors
from tierline.core.link.fleet import CHANNEL_OPTIONS, DEAD_AFTER_BEATS, HEARTBEAT_S, PROTOCOL, Beat, Hello, Welcome
from tierline.core.link.health import health_handler
from tierline.core.link.link import Link
from tierline.core.link.messages import Body
from tierline.core.link.session import Session
from tierline.core.link.status import abort
from tierline.core.link.tls import peer_node_id, peer_serial
from tierline.core.protocols import Clock
from tierline.core.wire import frame_from_wire, parse_frame
from tierline.v1 import fleet_pb2, fleet_pb2_grpc, plan_pb2

CHUNK_BYTES = 256 << 10
OPEN_TIMEOUT_S = 10.0

Context = grpc.aio.ServicerContext[Any, Any]


class ParentDesk(Protocol):
    """What a node does for its children; the listener calls it, always on the event loop."""

    def admit(self, hello: Hello) -> Welcome:
        """Take a child in. Raises a TierlineError that says why not."""
        ...

    def child_up(self, link: Link) -> None: ...

    def child_down(self, link: Link) -> None: ...

    def body(self, link: Link, body: Body, arrived_ns: int, decode_ns: int) -> None: ...

    def beat(self, beat: Beat) -> None: ...

    def file(self, digest: str) -> bytes:
        """A file of the Bundle by digest. Raises BundleError."""
        ...

    def revoked(self) -> tuple[str, ...]:
        """Serials of certificates that count no more; asked at every join, stream and heartbeat."""
        ...

    def is_serving(self, section: str = "") -> bool | None:
        """Whether samples can be answered, for `grpc.health.v1`; of a Section, whether it runs on the engine that it is
        meant to run on. None for a Section that does not run here."""
        ...

    def status(self) -> bytes:
        """JSON of this node and everything below it."""
        ...

    def plans(self) -> list[dict[str, Any]]:
        """JSON values of the Plans kept here, oldest first."""
        ...

    def change_plan(self, settings: Sequence[str], rollback_to: int, dry_run: bool) -> dict[str, Any]:
        """Other knobs for the Plan, which is returned as one of `plans()`. Raises a TierlineError that says why not."""
        ...


class Listener:
    """Serves `tierline.v1.Fleet` and `tierline.v1.Inference/Exchange` on one address."""

    def __init__(
        self,
        desk: ParentDesk,
        *,
        node: str,
        epoch: int,
        address: str,
        clock: Clock,
        credentials: grpc.ServerCredentials | None,
        access: Mapping[str, Any] | None = None,
    ) -> None:
        """`access` adds methods of the Inference service, by name."""
        self._desk, self._node, self._epoch, self._clock = desk, node, epoch, clock
        self.address = address
        self.links: dict[str, Link] = {}
        self._streams: dict[str, asyncio.Task[Any]] = {}
        self._ended: weakref.WeakKeyDictionary[asyncio.Task[Any], errors.TierlineError] = weakref.WeakKeyDictionary()
        """Why streams that are being cancelled have to end."""
        self._attending: dict[str, asyncio.Queue[bytes]] = {}
        self._pushed: bytes | None = None
        self.server = grpc.aio.server(options=CHANNEL_OPTIONS)
        fleet_pb2_grpc.add_FleetServicer_to_server(_FleetService(self, desk), self.server)
        # Frames pass as bytes, so that one that cannot be parsed is ours to answer, not gRPC's.
        handlers: dict[str, Any] = {"Exchange": grpc.stream_stream_rpc_method_handler(self._exchange)}
        handlers.update(access or {})
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("tierline.v1.Inference", handlers),))
        services = frozenset({"tierline.v1.Fleet", "tierline.v1.Inference"})
        self.server.add_generic_rpc_handlers((health_handler(services, desk.is_serving),))
        self._credentials = credentials

    async def start(self) -> str:
        """Bind and serve; returns the address with the port that was bound. Raises PortInUse."""
        try:
            if self._credentials is None:
                port = self.server.add_insecure_port(self.address)
            else:
                port = self.server.add_secure_port(self.address, self._credentials)
        except RuntimeError as error:
            raise why_not(self.address) from error
        await self.server.start()
        self.address = f"{self.address.rpartition(':')[0]}:{port}"
        return self.address

    async def stop(self, grace_s: float) -> None:
        """Stop taking calls; streams get `grace_s` to end."""
        await self.server.stop(grace_s)

    def push_plan(self, document: bytes) -> None:
        """Send a Plan to every child that is connected."""
        self._pushed = document
        for queue in self._attending.values():
            queue.put_nowait(document)

    async def _exchange(self, _requests: AsyncIterator[bytes], context: Context) -> None:
        try:
            first = await asyncio.wait_for(context.read(), OPEN_TIMEOUT_S)
            if first is grpc.aio.EOF:
                return
            link = self._link_of(first, context)
        except asyncio.TimeoutError:
            await abort(context, errors.LinkTimeout("no Open frame came"))
            return
        except errors.TierlineError as error:
            await abort(context, error)
            return
        await self._replace(link.peer)  # nothing may wait between here and the entry below
        task = asyncio.current_task()
        assert task is not None
        self._streams[link.peer] = task
        try:
            await context.write(link.opening())
            link.opened(first)
            self._desk.child_up(link)
            await link.serve(_reader(context), context.write)
        except errors.TierlineError as error:
            await abort(context, error)
        except asyncio.CancelledError:
            # gRPC tells a cancelled stream's peer nothing.
            reason = self._ended.pop(task, None)
            if reason is None:
                raise
            with contextlib.suppress(
                grpc.aio.InternalError
            ):  # a write that is under way cannot be followed by a status
                await abort(context, reason)
        finally:
            if self._streams.get(link.peer) is task:
                del self._streams[link.peer]
            link.is_up = False
            self._desk.child_down(link)

    def _link_of(self, first: bytes, context: Context) -> Link:
        opening = frame_from_wire(parse_frame(first)).body
        node = getattr(opening, "node", None)
        if not isinstance(node, str):
            raise errors.BadFrame("the first frame of a stream must be Open")
        return self.check_joined(context, node)

    def check_joined(self, context: Context, node: str) -> Link:
        """The link of a node that joined. Raises PeerRejected, SecurityError."""
        link = self.links.get(node)
        if link is None:
            raise errors.PeerRejected(f"node {node!r} has not joined {self._node!r}; call Fleet.Join first")
        self.check_identity(context, node)
        return link

    def check_identity(self, context: Context, node: str) -> None:
        """Under mutual TLS a node may only speak for itself. Raises SecurityError."""
        auth = context.auth_context()
        serial = peer_serial(auth)
        if serial is None:
            return  # a plain link, which only loopback and --insecure have
        identity = peer_node_id(auth)
        if identity != node:
            raise errors.SecurityError(f"the certificate belongs to {identity or 'no tierline node'}, not to {node!r}")
        if serial in self._desk.revoked():
            raise errors.SecurityError(f"node {node!r} was revoked; invite it again")

    def check_operator(self, context: Context) -> None:
        """Under mutual TLS only this node's own certificate changes what it decides. Raises SecurityError."""
        try:
            self.check_identity(context, self._node)
        except errors.SecurityError as error:
            raise errors.SecurityError(
                f"{error}, which alone changes its Plan: ask with --state-dir of {self._node!r}"
            ) from None

    async def _replace(self, node: str) -> None:
        """A node has one stream: a new one ends the old, which TCP may believe alive for minutes."""
        while (old := self._streams.get(node)) is not None:
            self._end(old, errors.PeerRejected(f"another process has connected as {node!r}; a node runs once"))
            await asyncio.wait((old,))

    def _end(self, stream: asyncio.Task[Any], reason: errors.TierlineError) -> None:
        self._ended[stream] = reason
        stream.cancel()

    def join(self, hello: Hello) -> Welcome:
        """Admit a child and give it a link; joining again is harmless."""
        welcome = self._desk.admit(hello)
        if hello.node not in self.links:
            link = Link(Session(self._node, self._epoch), self._clock, self._desk.body)
            link.peer = hello.node
            self.links[hello.node] = link
        return welcome

    def plans_for(self, node: str) -> asyncio.Queue[bytes]:
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        if self._pushed is not None:  # it may have been pushed between this node's join and now
            queue.put_nowait(self._pushed)
        self._attending[node] = queue
        return queue

    def left(self, node: str, epoch: int, queue: asyncio.Queue[bytes]) -> None:
        """The heartbeats of a child's process ended: its stream, if any is left, ends too."""
        if self._attending.get(node) is queue:
            del self._attending[node]
            stream = self._streams.get(node)
            if stream is not None and self.links[node].peer_epoch == epoch:
                self._end(stream, errors.LinkTimeout(f"the heartbeats of {node!r} ended"))


class _FleetService(fleet_pb2_grpc.FleetServicer):
    def __init__(self, listener: Listener, desk: ParentDesk) -> None:
        self._listener, self._desk = listener, desk

    async def Join(self, request: fleet_pb2.Hello, context: Any) -> fleet_pb2.Welcome:
        try:
            self._listener.check_identity(context, request.node)
            if not request.protocol_min <= PROTOCOL <= request.protocol_max:
                raise errors.PeerRejected(
                    f"node {request.node!r} speaks protocols {request.protocol_min} to {request.protocol_max}, "
                    f"this node speaks {PROTOCOL}; install matching versions of tierline"
                )
            welcome = self._listener.join(
                Hello(
                    node=request.node,
                    tier=request.tier,
                    epoch=request.epoch,
                    views=tuple(request.views),
                    bundle_digest=request.bundle_digest,
                    codecs=tuple(request.codecs),
                    version=request.version,
                )
            )
        except errors.TierlineError as error:
            await abort(context, error)
            raise AssertionError("abort raises") from error
        return fleet_pb2.Welcome(
            protocol=PROTOCOL,
            parent=welcome.parent,
            epoch=welcome.epoch,
            plan=plan_pb2.PlanDocument(document=welcome.plan, digest=welcome.plan_digest),
            bundle_digest=welcome.bundle_digest,
            manifest=welcome.manifest,
            heartbeat_s=welcome.heartbeat_s,
            run=welcome.run,
            revoked=welcome.revoked,
        )

    async def Attend(self, request_iterator: Any, context: Any) -> AsyncIterator[fleet_pb2.Directive]:
        node, epoch, plans, beats = "", 0, None, 0
        try:
            while True:
                beat = await asyncio.wait_for(context.read(), HEARTBEAT_S * DEAD_AFTER_BEATS)
                if beat is grpc.aio.EOF:
                    return
                if plans is None:
                    self._listener.check_joined(context, beat.node)
                    node, epoch, plans = beat.node, beat.epoch, self._listener.plans_for(beat.node)
                self._listener.check_identity(context, node)
                if beat.node != node:
                    raise errors.BadFrame(f"a heartbeat of {beat.node!r} among those of {node!r}")
                self._desk.beat(Beat(node, beat.epoch, beat.status, beat.rtt_ms))
                beats += 1
                yield fleet_pb2.Directive(beat=beats, revoked=self._desk.revoked())
                while not plans.empty():
                    yield fleet_pb2.Directive(plan=plan_pb2.PlanDocument(document=plans.get_nowait()))
        except asyncio.TimeoutError:
            await abort(
                context, errors.LinkTimeout(f"no heartbeat of {node!r} for {HEARTBEAT_S * DEAD_AFTER_BEATS:g} s")
            )
        except errors.TierlineError as error:
            await abort(context, error)
        finally:
            if plans is not None:
                self._listener.left(node, epoch, plans)

    async def Fetch(self, request: fleet_pb2.FetchRequest, context: Any) -> AsyncIterator[fleet_pb2.Chunk]:
        try:
            raw = self._desk.file(request.digest)
        except errors.TierlineError as error:
            await abort(context, error)
            return
        for start in range(0, len(raw), CHUNK_BYTES):
            yield fleet_pb2.Chunk(data=raw[start : start + CHUNK_BYTES])

    async def Status(self, request: fleet_pb2.StatusRequest, context: Any) -> fleet_pb2.StatusReply:
        return fleet_pb2.StatusReply(status=self._desk.status())

    async def Plans(self, request: fleet_pb2.PlansRequest, context: Any) -> fleet_pb2.PlansReply:
        return fleet_pb2.PlansReply(plans=json.dumps(self._desk.plans()).encode())

    async def ChangePlan(self, request: fleet_pb2.ChangePlanRequest, context: Any) -> fleet_pb2.ChangePlanReply:
        try:
            self._listener.check_operator(context)
            plan = self._desk.change_plan(request.set, request.rollback_to, request.dry_run)
        except errors.TierlineError as error:
            await abort(context, error)
            raise AssertionError("abort raises") from error
        return fleet_pb2.ChangePlanReply(plan=json.dumps(plan).encode())


def why_not(address: str) -> errors.TierlineError:
    """Why nobody can listen there: gRPC does not say."""
    host, _, port = address.rpartition(":")
    try:
        for family, kind, proto, _, place in socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM):
            with socket.socket(family, kind, proto) as probe:
                probe.bind(place)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            return errors.ConfigError(f"listen = {address!r}: {error.strerror or error}; write one of this machine")
    except ValueError:
        return errors.ConfigError(f"listen = {address!r}: expected HOST:PORT")
    return errors.PortInUse(f"listen = {address!r}: another process uses this port; choose another one, or stop it")


def _reader(context: Context) -> Callable[[], Any]:
    async def read() -> bytes | None:
        raw = await context.read()
        return None if raw is grpc.aio.EOF else raw

    return read
