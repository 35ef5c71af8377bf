"""The parent's half: a gRPC server that admits children and keeps one Link per child."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import socket
import weakref
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, get_args

import grpc
import grpc.aio

from tierline.core import errors
from tierline.core.link.fleet import (
    CHANNEL_OPTIONS,
    CHUNK_BYTES,
    DEAD_AFTER_BEATS,
    HEARTBEAT_S,
    PROTOCOL,
    Beat,
    Hello,
    NodeState,
    Order,
    PlanChange,
    State,
    Welcome,
)
from tierline.core.link.health import health_handler
from tierline.core.link.link import Link
from tierline.core.link.measured import MeasureCalls, MeasureDesk
from tierline.core.link.messages import Body
from tierline.core.link.session import Session
from tierline.core.link.status import abort
from tierline.core.link.tls import peer_node_id, peer_serial
from tierline.core.protocols import Clock
from tierline.core.wire import frame_from_wire, parse_frame
from tierline.v1 import fleet_pb2, fleet_pb2_grpc, plan_pb2

OPEN_TIMEOUT_S = 10.0

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True)
class Task:
    """What a child is to do beside answering: JSON of `core.flow.orders`, or of `learning.fleet.job`."""

    measure: bytes = b""
    jobs: bytes = b""


Words = asyncio.Queue[Order | Task | int | None]
"""What a child is to be told: of Plans, of tasks, and the numbers of its heartbeats. None ends it."""


class ParentDesk(MeasureDesk, Protocol):
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

    def jobs(self) -> bytes:
        """What is learned now, for a Directive; empty where nothing was ever."""
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

    async def change_plan(self, wanted: PlanChange) -> dict[str, Any]:
        """Another Plan, which is returned as one of `plans()`. Raises a TierlineError that says why not."""
        ...

    def offer_bundle(self, manifest: bytes) -> list[str]:
        """Digests of the files of a Bundle that are not here. Raises a TierlineError."""
        ...

    async def put_file(self, bundle: str, digest: str, chunks: AsyncIterator[bytes]) -> None:
        """Take one file of an offered Bundle. Raises a TierlineError."""
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
        self._desk, self._node, self._epoch, self.clock = desk, node, epoch, clock
        self.address = address
        self.links: dict[str, Link] = {}
        self._streams: dict[str, asyncio.Task[Any]] = {}
        self._ended: weakref.WeakKeyDictionary[asyncio.Task[Any], errors.TierlineError] = weakref.WeakKeyDictionary()
        """Why streams that are being cancelled have to end."""
        self._attending: dict[str, Words] = {}
        self._standing: dict[str, Order] = {}
        """What who attends from now on must hear, oldest first: `knobs`, and a `switch`."""
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

    def push(self, order: Order) -> None:
        """Send word of a Plan to every child that is connected."""
        kind = "knobs" if order.phase == "knobs" else "switch"
        self._standing.pop(kind, None)
        if order.phase == "commit":
            self._standing.clear()  # knobs of the Plan before
        if order.phase != "abort":
            self._standing[kind] = order
        for words in self._attending.values():
            words.put_nowait(order)

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

    def check_child(self, context: Context) -> str | None:
        """Who calls: under mutual TLS a node that has joined and was not revoked; None on a plain link. Raises
        PeerRejected, SecurityError."""
        auth = context.auth_context()
        if peer_serial(auth) is None:
            return None
        node = peer_node_id(auth) or ""
        self.check_joined(context, node)
        return node

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
            link = Link(Session(self._node, self._epoch), self.clock, self._desk.body)
            link.peer = hello.node
            self.links[hello.node] = link
        return welcome

    def attends(self, node: str, words: Words) -> None:
        """A child's heartbeats began. What was pushed may have been so between its join and now."""
        for order in self._standing.values():
            words.put_nowait(order)
        self._attending[node] = words

    def left(self, node: str, epoch: int, words: Words) -> None:
        """The heartbeats of a child's process ended: its stream, if any is left, ends too."""
        if self._attending.get(node) is words:
            del self._attending[node]
            stream = self._streams.get(node)
            if stream is not None and self.links[node].peer_epoch == epoch:
                self._end(stream, errors.LinkTimeout(f"the heartbeats of {node!r} ended"))


class _FleetService(MeasureCalls, fleet_pb2_grpc.FleetServicer):
    def __init__(self, listener: Listener, desk: ParentDesk) -> None:
        super().__init__(listener, desk, listener.clock)
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
        words: Words = asyncio.Queue()
        hearing = asyncio.create_task(self._hear(context, words))
        try:
            while (word := await words.get()) is not None:
                yield _directive(word, self._desk.revoked())
            hearing.result()
        except errors.TierlineError as error:
            await abort(context, error)
        finally:
            hearing.cancel()

    async def _hear(self, context: Any, words: Words) -> None:
        """Heartbeats of one child, until they end; then `words` end, too."""
        node, epoch, beats, jobs = "", 0, 0, b""
        try:
            while True:
                beat = await asyncio.wait_for(context.read(), HEARTBEAT_S * DEAD_AFTER_BEATS)
                if beat is grpc.aio.EOF:
                    return
                if not beats:
                    self._listener.check_joined(context, beat.node)
                    node, epoch = beat.node, beat.epoch
                    self._listener.attends(node, words)
                self._listener.check_identity(context, node)
                if beat.node != node:
                    raise errors.BadFrame(f"a heartbeat of {beat.node!r} among those of {node!r}")
                beats += 1
                words.put_nowait(beats)
                for order in self._desk.orders(node):
                    words.put_nowait(Task(measure=order))
                self._desk.beat(Beat(node, beat.epoch, beat.status, beat.rtt_ms, _states(beat.switches)))
                if jobs != (jobs := self._desk.jobs()):
                    words.put_nowait(Task(jobs=jobs))
        except grpc.aio.BaseError:
            return  # the server stops
        except asyncio.TimeoutError:
            raise errors.LinkTimeout(f"no heartbeat of {node!r} for {HEARTBEAT_S * DEAD_AFTER_BEATS:g} s") from None
        finally:
            words.put_nowait(None)
            self._listener.left(node, epoch, words)

    async def Fetch(self, request: fleet_pb2.FetchRequest, context: Any) -> AsyncIterator[fleet_pb2.Chunk]:
        try:
            raw = self._desk.file(request.digest)
        except errors.TierlineError as error:
            await abort(context, error)
            return
        end = min(len(raw), request.offset + request.num_bytes) if request.num_bytes else len(raw)
        for start in range(request.offset, end, CHUNK_BYTES):
            yield fleet_pb2.Chunk(data=raw[start : min(end, start + CHUNK_BYTES)])

    async def Status(self, request: fleet_pb2.StatusRequest, context: Any) -> fleet_pb2.StatusReply:
        return fleet_pb2.StatusReply(status=self._desk.status())

    async def Plans(self, request: fleet_pb2.PlansRequest, context: Any) -> fleet_pb2.PlansReply:
        return fleet_pb2.PlansReply(plans=json.dumps(self._desk.plans()).encode())

    async def ChangePlan(self, request: fleet_pb2.ChangePlanRequest, context: Any) -> fleet_pb2.ChangePlanReply:
        try:
            self._listener.check_operator(context)
            wanted = PlanChange(tuple(request.set), request.rollback_to, request.dry_run, request.bundle, request.plan)
            plan = await self._desk.change_plan(wanted)
        except errors.TierlineError as error:
            await abort(context, error)
            raise AssertionError("abort raises") from error
        return fleet_pb2.ChangePlanReply(plan=json.dumps(plan).encode())

    async def OfferBundle(self, request: fleet_pb2.OfferBundleRequest, context: Any) -> fleet_pb2.OfferBundleReply:
        try:
            self._listener.check_operator(context)
            return fleet_pb2.OfferBundleReply(missing=self._desk.offer_bundle(request.manifest))
        except errors.TierlineError as error:
            await abort(context, error)
            raise AssertionError("abort raises") from error

    async def PutFile(self, request_iterator: Any, context: Any) -> fleet_pb2.PutFileReply:
        try:
            self._listener.check_operator(context)
            first = await context.read()
            if first is grpc.aio.EOF:
                raise errors.BadFrame("a file without a first chunk")

            async def chunks() -> AsyncIterator[bytes]:
                yield first.data
                while (chunk := await context.read()) is not grpc.aio.EOF:
                    yield chunk.data

            await self._desk.put_file(first.bundle, first.digest, chunks())
            return fleet_pb2.PutFileReply()
        except errors.TierlineError as error:
            await abort(context, error)
            raise AssertionError("abort raises") from error


_PHASES = {
    "prepare": fleet_pb2.Switch.PHASE_PREPARE,
    "commit": fleet_pb2.Switch.PHASE_COMMIT,
    "abort": fleet_pb2.Switch.PHASE_ABORT,
}


def _directive(word: Order | Task | int, revoked: tuple[str, ...]) -> fleet_pb2.Directive:
    if isinstance(word, int):
        return fleet_pb2.Directive(beat=word, revoked=revoked)
    if isinstance(word, Task):
        return fleet_pb2.Directive(measure=word.measure, jobs=word.jobs, revoked=revoked)
    document = plan_pb2.PlanDocument(document=word.plan)
    if word.phase == "knobs":
        return fleet_pb2.Directive(plan=document, revoked=revoked)
    switch = fleet_pb2.Switch(
        phase=_PHASES[word.phase],
        plan=document,
        bundle_digest=word.bundle_digest,
        manifest=word.manifest,
        first_seq=word.first_seq,
    )
    return fleet_pb2.Directive(switch=switch, revoked=revoked)


def _states(states: Any) -> tuple[NodeState, ...]:
    """What a child says of itself and those below it; words that this version does not know count as `loading`."""
    known: tuple[State, ...] = get_args(State)
    return tuple(
        NodeState(x.node, x.version, next((state for state in known if state == x.state), "loading"), x.message)
        for x in states
    )


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
