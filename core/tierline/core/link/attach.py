"""One `Learning.Attach` stream, as either side holds it: letters in paced pieces, and short notes before them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

import grpc
import grpc.aio

from tierline.core import errors
from tierline.core.link.channel import open_channel, reader, why_ended, writer
from tierline.core.link.dial import Backoff
from tierline.core.link.fleet import HEARTBEAT_S
from tierline.core.link.intake import Arriving, Intake
from tierline.core.link.learning_wire import parcel_from_wire, parcel_to_wire
from tierline.core.link.letters import Head, Letter, Note, Parcel, Piece, Present, Received
from tierline.core.link.pace import Pacer
from tierline.core.link.status import abort, from_rpc
from tierline.core.link.tls import peer_node_id
from tierline.core.link.writer import Write, Writer, writing
from tierline.core.protocols import Clock
from tierline.core.types import NodeId

LOG = logging.getLogger("tierline.learning")
ATTACH = "/tierline.v1.Learning/Attach"

Read = Callable[[], Awaitable[bytes | None]]
Context = grpc.aio.ServicerContext[Any, Any]


class Desk(Protocol):
    """Who takes what streams bring; called on the event loop."""

    max_letter_bytes: int
    """Of the content of one letter; a longer one ends its stream."""
    intake: Intake
    """Keeps letters until they are whole."""

    def speaks_for(self, identity: str, node: NodeId) -> bool:
        """Whether a peer with this certificate may say that it reaches `node`."""
        ...

    def attached(self, stream: Attachment) -> None:
        """A stream is open; what is posted now leaves first."""
        ...

    def detached(self, stream: Attachment) -> None: ...

    def present(self, stream: Attachment, before: frozenset[NodeId]) -> None:
        """`stream.present` is new; `before` is what it was."""
        ...

    def letter(self, stream: Attachment, letter: Letter) -> None:
        """Raises BadFrame where the peer may not send it."""
        ...

    def note(self, stream: Attachment, note: Note) -> None: ...


def is_of(identity: str, node: NodeId) -> bool:
    """Where nothing else says who is where: a process speaks for itself, and for nodes named `ID/...` that it holds."""
    return node == identity or node.startswith(f"{identity}/")


class Attachment:
    """Queues, pacing and assembly of one stream; `is_child` says that the peer called, `identity` what its certificate
    says it is."""

    def __init__(self, desk: Desk, clock: Clock, *, is_child: bool, identity: str | None = None) -> None:
        self.is_child, self.identity = is_child, identity
        self.present: tuple[NodeId, ...] = ()
        self.was_up = False
        """The peer has said something."""
        self.pacer = Pacer()
        self._desk, self._clock = desk, clock
        self._notes: deque[Parcel] = deque()
        self._letters: deque[Letter] = deque()
        self._num_cut = 0
        """Bytes of the first letter that have left."""
        self._num_received = 0
        self._arriving: tuple[Head, Arriving] | None = None
        self._writer: Writer | None = None
        self._task: asyncio.Task[Any] | None = None
        self._reason: errors.TierlineError | None = None

    def post(self, letter: Letter) -> None:
        """Send a letter after those that wait."""
        self._letters.append(letter)
        self._kick()

    def tell(self, note: Parcel) -> None:
        """Send something short, before the next piece of a letter."""
        self._notes.append(note)
        self._kick()

    def end(self, reason: errors.TierlineError) -> None:
        """End the stream from this side: `serve` raises `reason`."""
        if self._task is not None and self._reason is None:
            self._reason = reason
            self._task.cancel()

    async def serve(self, read: Read, write: Write, first: bytes | None = None) -> None:
        """Run the stream until the peer ends it; errors of `read` and `write` pass through. `first` was read before."""
        with writing(write, self._next_parcel) as writer:
            self._writer, self._task = writer, asyncio.current_task()
            self._desk.attached(self)
            writer.kick()
            try:
                if first is not None:
                    self.take(first)
                while (raw := await read()) is not None:
                    if self._arriving is not None and self._arriving[1].num_missing <= len(raw):  # it may be the end
                        await self._desk.intake.room()
                    self.take(raw)
            except asyncio.CancelledError:
                if self._reason is None:
                    raise
                raise self._reason from None
            finally:
                self._writer = self._task = None
                if self._arriving is not None:
                    self._arriving[1].close()
                self._desk.detached(self)

    def take(self, raw: bytes) -> None:
        """One parcel of the peer. Raises BadFrame, PeerRejected."""
        parcel = parcel_from_wire(raw)
        self.was_up = True
        if isinstance(parcel, Piece):
            self._take_piece(parcel)
        elif isinstance(parcel, Received):
            if not self.pacer.received(parcel.num_bytes, self._clock.now_ns()):
                raise errors.BadFrame(f"acknowledges {parcel.num_bytes} bytes that were not sent")
            self._kick()
        elif isinstance(parcel, Present):
            for node in parcel.nodes:
                if self.identity is not None and not self._desk.speaks_for(self.identity, node):
                    raise errors.SecurityError(f"the certificate belongs to {self.identity}, not to {node!r}")
            before, self.present = frozenset(self.present), parcel.nodes
            self._desk.present(self, before)
        else:
            self._desk.note(self, parcel)

    def _take_piece(self, piece: Piece) -> None:
        if piece.head is not None:
            if self._arriving is not None:
                raise errors.BadFrame(f"{piece.head}: begins before the end of another letter")
            if piece.num_bytes > self._desk.max_letter_bytes:
                raise errors.BadFrame(
                    f"{piece.head}: {piece.num_bytes} bytes, at most {self._desk.max_letter_bytes} are taken"
                )
            self._arriving = piece.head, self._desk.intake.open(piece.num_bytes)
        if self._arriving is None or len(piece.data) > self._arriving[1].num_missing:
            raise errors.BadFrame("a piece that belongs to no letter")
        head, arriving = self._arriving
        arriving.append(piece.data)
        self._num_received += len(piece.data)
        self.tell(Received(self._num_received))
        if arriving.num_missing == 0:
            self._arriving = None
            self._desk.letter(self, Letter(head, arriving.take()))

    def _kick(self) -> None:
        if self._writer is not None:
            self._writer.kick()

    def _next_parcel(self) -> bytes | None:
        if self._notes:
            return parcel_to_wire(self._notes.popleft())
        if not self._letters:
            return None
        now_ns = self._clock.now_ns()
        room = self.pacer.room(now_ns)
        if room == 0:
            return None
        letter, start = self._letters[0], self._num_cut
        data = memoryview(letter.content)[start : start + room]
        self._num_cut += len(data)
        if self._num_cut == len(letter.content):
            self._letters.popleft()
            self._num_cut = 0
        self.pacer.sent(len(data), now_ns)
        return parcel_to_wire(Piece(data, letter.head if start == 0 else None, len(letter.content)))


def learning_handler(
    desk_of: Callable[[str], Desk], clock: Clock, check: Callable[[Context], str | None] | None = None
) -> grpc.GenericRpcHandler:
    """`Learning.Attach` for a server of `grpc.aio`. `desk_of` finds who takes part in a run, and raises a TierlineError
    where nobody does. `check` says who calls, and raises for whom is not let in, also later; without it whoever the
    certificate names is."""
    identify = check or (lambda context: peer_node_id(context.auth_context()))

    async def attach(_requests: AsyncIterator[bytes], context: Context) -> None:
        read = reader(context)
        try:
            identity = identify(context)
            first = await read()
            if first is None:
                return
            parcel = parcel_from_wire(first)
            desk = desk_of(parcel.run if isinstance(parcel, Present) else "")
            stream = Attachment(desk, clock, is_child=True, identity=identity)
            watching = asyncio.ensure_future(_watch(stream, lambda: identify(context)))
            try:
                await stream.serve(read, context.write, first)
            finally:
                watching.cancel()
        except errors.TierlineError as error:
            LOG.info("a learning stream ended: %s", error)
            with contextlib.suppress(grpc.aio.InternalError):  # a write under way cannot be followed by a status
                await abort(context, error)

    handlers: dict[str, Any] = {"Attach": grpc.stream_stream_rpc_method_handler(attach)}
    return grpc.method_handlers_generic_handler("tierline.v1.Learning", handlers)


async def _watch(stream: Attachment, identify: Callable[[], object]) -> None:
    """Ends the stream once its caller is not let in any more."""
    while True:
        await asyncio.sleep(HEARTBEAT_S)
        try:
            identify()
        except errors.TierlineError as error:
            stream.end(error)


async def keep_attached(
    address: str,
    desk: Desk,
    clock: Clock,
    *,
    credentials: grpc.ChannelCredentials | None,
    rng: random.Random,
    backoff: Backoff | None = None,
) -> None:
    """Stay attached to the parent at `address` until cancelled, over as many streams as it takes. Raises what the
    parent refuses for good."""
    backoff, attempt = backoff or Backoff(), 0
    while True:
        stream = Attachment(desk, clock, is_child=False)
        try:
            # A new channel each time: an old one waits as long as it likes before it dials again.
            async with open_channel(address, credentials) as channel:
                await attach(channel, address, stream)
        except (errors.LinkUnavailable, errors.LinkTimeout) as error:
            LOG.info("%s; trying again", error)
        attempt = 0 if stream.was_up else attempt + 1
        await asyncio.sleep(backoff.wait_s(attempt, rng))


async def attach(channel: grpc.aio.Channel, address: str, stream: Attachment) -> None:
    """One stream over a channel that is there already. Raises a TierlineError that says why it ended."""
    call: Any = channel.stream_stream(ATTACH)()
    try:
        await stream.serve(reader(call), writer(call))
        raise why_ended(await call.code(), await call.details(), address)
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error, address) from error
    finally:
        call.cancel()
