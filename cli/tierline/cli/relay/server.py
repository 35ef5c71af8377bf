"""The relay's sockets: accepts connections, dials onward, and moves bytes through one queue per direction.

What it cannot emulate: the TCP handshake towards the relay takes no round trip, and the sender's kernel still buffers
what the relay does not read (as it would on a real link).
"""

from __future__ import annotations

import asyncio
import errno
import math
import socket
import struct
from typing import Any

from tierline.cli.relay.profile import LinkProfile, parse_link
from tierline.cli.relay.queue import ShapedQueue
from tierline.core.errors import ConfigError, PortInUse

MAX_CONNECTIONS = 400
"""`select` knows 1024 file descriptors, and each connection has two."""

_READ_BYTES = 64 * 1024
_KERNEL_BYTES = 64 * 1024


class Lane:
    """One direction: its queue, the ends that feed it, and the one timer that empties it."""

    def __init__(self, profile: LinkProfile, seed: int) -> None:
        self.queue: ShapedQueue[End] = ShapedQueue(profile, seed)
        self.sources: set[End] = set()
        self.num_bytes = 0
        self.full = False
        self.held = False
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def take(self, target: End, data: bytes) -> None:
        """Accept bytes that one end has read; stop all reading when the queue is full."""
        if not self.queue.enqueue(target, data, self._loop.time()) and not self.full:
            self.full = True
            self._update_sources()
        if self._timer is None:
            self._arm()

    def hold(self, held: bool) -> None:
        """Stop or resume everything: connections stay open, nothing passes."""
        self.held = held
        self._update_sources()
        self._pump()

    def clear(self) -> None:
        self.queue.clear()
        self._pump()

    def close(self) -> None:
        if self._timer:
            self._timer.cancel()

    def _pump(self) -> None:
        if not self.held:
            now_s = self._loop.time()
            for target, data in self.queue.due(now_s):
                self.num_bytes += len(data)
                target.deliver(data)
            if self.full and self.queue.room_at_s(now_s) <= now_s:
                self.full = False
                self._update_sources()
        self._arm()

    def _arm(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        at_s = self.queue.next_due_s()
        if self.full:
            at_s = min(at_s, self.queue.room_at_s(self._loop.time()))
        if at_s < math.inf and not self.held:
            self._timer = self._loop.call_at(at_s, self._pump)

    def _update_sources(self) -> None:
        for end in self.sources:
            end.update_reading()


class End(asyncio.BufferedProtocol):
    """One socket of a relayed connection. It reads into `lane`, and writes what its peer's lane delivers.

    Reading stops while the lane is full or held, or while the peer's own receiver does not read (`choked`): the flow
    control of one connection reaches its sender and never fills the shared queue.
    """

    def __init__(self, relay: Relay, lane: Lane, peer: End | None = None) -> None:
        self.relay, self.lane, self.peer = relay, lane, peer
        self.transport: asyncio.Transport | None = None
        self.choked = False
        self.lost = False
        self._read_ended = self._write_ended = False
        self._buffer = memoryview(bytearray(min(_READ_BYTES, max(1, lane.queue.profile.capacity_bytes // 4))))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        # A large kernel buffer would be a queue per connection in front of the shared one. TCP_NODELAY is set by
        # asyncio on every TCP socket.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _KERNEL_BYTES)
        self.lane.sources.add(self)
        # Soon and not now: before Python 3.11 a transport forgets a pause asked for while it is being made.
        asyncio.get_running_loop().call_soon(self.update_reading)
        if self.peer is None:
            self.relay.accepted(self)
        else:
            self.peer.peer = self
            self.peer.update_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        assert self.peer is not None, "reading starts when the onward connection stands"
        self.lane.take(self.peer, bytes(self._buffer[:nbytes]))

    def eof_received(self) -> bool:
        self._read_ended = True
        if self.peer is not None:
            self.lane.take(self.peer, b"")
        return True

    def deliver(self, data: bytes) -> None:
        """Bytes came out of the link (none: the other side ended its stream)."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if data:
            transport.write(data)
            return
        assert self.peer is not None, "a delivery has a sender"
        self._write_ended = True
        if self.peer.lost or self._read_ended:
            transport.close()
        else:
            transport.write_eof()

    def pause_writing(self) -> None:
        self._choke_peer(True)

    def resume_writing(self) -> None:
        self._choke_peer(False)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.lane.sources.discard(self)
        self.relay.lost(self)
        if self.peer is not None and not self.peer.lost:
            self.lane.take(self.peer, b"")

    def reset(self) -> None:
        """End the connection at once, as seen from outside: a TCP reset instead of an orderly end of stream."""
        if self.transport is not None and not self.transport.is_closing():
            linger_none = struct.pack("ii", 1, 0)
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_none)
            self.transport.abort()

    def update_reading(self) -> None:
        if self.transport is None or self._read_ended:
            return
        if self.peer is None or self.lane.full or self.lane.held or self.choked:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def _choke_peer(self, choked: bool) -> None:
        if self.peer is not None:
            self.peer.choked = choked
            self.peer.update_reading()


class Relay:
    """A listening relay towards one address; `up` is the direction of those who connect to it."""

    def __init__(self, profile: LinkProfile, to: tuple[str, int], seed: int = 0) -> None:
        self._profile, self._to = profile, to
        self._lanes = {"up": Lane(profile, 2 * seed), "down": Lane(profile, 2 * seed + 1)}
        self._ends: set[End] = set()
        self._dials: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._cut = False
        self._num_accepted = self._num_refused = 0

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port. Raises PortInUse."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(lambda: End(self, self._lanes["up"]), host, port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortInUse(f"{host}:{port} is taken; choose another port, or 0 for any free one") from error
            raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        if self._server:
            self._server.close()
        self._abort_all()
        for dial in list(self._dials):
            dial.cancel()
        await asyncio.gather(*self._dials, return_exceptions=True)
        for lane in self._lanes.values():
            lane.close()

    def cut(self, silent: bool = False) -> None:
        """Break the link. Loud: connections are reset, new ones too. Silent: they stay open and nothing passes."""
        self._cut = not silent
        for lane in self._lanes.values():
            lane.hold(silent)
        if not silent:
            self._abort_all()

    def restore(self) -> None:
        self._cut = False
        for lane in self._lanes.values():
            lane.hold(False)

    def change(self, link: object) -> None:
        """Change the link while it runs: a name, an inline profile, or a table of the fields that change."""
        if isinstance(link, str):
            self._profile = parse_link(link)
        elif isinstance(link, dict):
            self._profile = self._profile.changed(link)
        else:
            raise ConfigError(f"link {link!r}: give a name or a table")
        for lane in self._lanes.values():
            lane.queue.profile = self._profile

    def stats(self) -> dict[str, Any]:
        """Bytes that left the link per direction, stalls, waiting bytes, connections."""
        now_s = asyncio.get_running_loop().time()
        return {
            "bytes": {name: lane.num_bytes for name, lane in self._lanes.items()},
            "backlog_bytes": {name: lane.queue.backlog_bytes(now_s) for name, lane in self._lanes.items()},
            "stalls": {name: lane.queue.num_stalls for name, lane in self._lanes.items()},
            "connections": {
                "open": sum(end.lane is self._lanes["up"] for end in self._ends),
                "accepted": self._num_accepted,
                "refused": self._num_refused,
            },
        }

    def accepted(self, end: End) -> None:
        """A new connection: refuse it, or dial onward; called by its End."""
        if self._cut or len(self._ends) >= 2 * MAX_CONNECTIONS:
            self._num_refused += 1
            end.reset()
            return
        self._num_accepted += 1
        self._ends.add(end)
        dial = asyncio.get_running_loop().create_task(self._dial(end))
        self._dials.add(dial)
        dial.add_done_callback(self._dials.discard)

    def lost(self, end: End) -> None:
        self._ends.discard(end)

    async def _dial(self, near: End) -> None:
        def make() -> End:
            far = End(self, self._lanes["down"], peer=near)
            self._ends.add(far)
            return far

        try:
            await asyncio.get_running_loop().create_connection(make, *self._to)
        except OSError:
            self._num_refused += 1
            near.reset()
            return
        if near.lost and near.peer is not None:
            near.peer.reset()

    def _abort_all(self) -> None:
        for end in list(self._ends):
            end.reset()
        for lane in self._lanes.values():
            lane.clear()
