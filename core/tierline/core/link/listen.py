"""The parent's half: a gRPC server that admits children and keeps one Link per child."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import weakref
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
import grpc.aio

from tierline.core import errors
from tierline.core.link.channel import reader
from tierline.core.link.fleet import (
    CHANNEL_OPTIONS,
    Hello,
    Order,
    Welcome,
)
from tierline.core.link.fleet_service import FleetService, ParentDesk, Words
from tierline.core.link.health import health_handler
from tierline.core.link.link import Link
from tierline.core.link.session import Session
from tierline.core.link.status import abort
from tierline.core.link.tls import peer_node_id, peer_serial
from tierline.core.protocols import Clock
from tierline.core.wire import frame_from_wire, parse_frame
from tierline.v1 import fleet_pb2_grpc

OPEN_TIMEOUT_S = 10.0

Context = grpc.aio.ServicerContext[Any, Any]


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
        fleet_pb2_grpc.add_FleetServicer_to_server(FleetService(self, desk), self.server)
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
            raise explain_bind_failure(self.address) from error
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
        except errors.TierlineError as error:
            await abort(context, error)
        await self._replace(link.peer)  # nothing may wait between here and the entry below
        task = asyncio.current_task()
        assert task is not None
        self._streams[link.peer] = task
        try:
            await context.write(link.opening())
            link.opened(first)
            self._desk.child_up(link)
            await link.serve(reader(context), context.write)
        except errors.TierlineError as error:
            await abort(context, error)
        except asyncio.CancelledError:
            # gRPC tells a cancelled stream's peer nothing.
            reason = self._ended.pop(task, None)
            if reason is None:
                raise
            # A write that is under way cannot be followed by a status.
            with contextlib.suppress(grpc.aio.InternalError):
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


def explain_bind_failure(address: str) -> errors.TierlineError:
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
