"""One connection between child and parent, as either side holds it: posting, counting, delivering.

A `Link` lives as long as the node; streams come and go below it (`serve`). There is one reader and one writer task per
stream. Bodies are delivered by calling `on_body` from the reader task: handing them through a queue would cost every
sample one more turn of the event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tierline.core.errors import BadFrame
from tierline.core.link.messages import Body, Features, Frame, Open, Part, Verdict
from tierline.core.link.session import Session
from tierline.core.protocols import Clock
from tierline.core.types import Payload
from tierline.core.wire import FRAME_OVERHEAD_BYTES, frame_from_wire, frame_to_wire, parse_frame

Read = Callable[[], Awaitable[bytes | None]]
Write = Callable[[bytes], Awaitable[None]]


@dataclass(slots=True)
class LinkCounters:
    """Bytes of one link. `payload` is coded tensors, `framing` all else that tierline and gRPC add per message."""

    sent_frames: int = 0
    received_frames: int = 0
    sent_payload_bytes: int = 0
    sent_framing_bytes: int = 0
    received_payload_bytes: int = 0
    received_framing_bytes: int = 0
    sent_by_codec: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, int]:
        return {
            "sent_frames": self.sent_frames,
            "received_frames": self.received_frames,
            "sent_payload_bytes": self.sent_payload_bytes,
            "sent_framing_bytes": self.sent_framing_bytes,
            "received_payload_bytes": self.received_payload_bytes,
            "received_framing_bytes": self.received_framing_bytes,
        }


@dataclass(frozen=True, slots=True)
class LinkProfile:
    """What was measured in-band while serving."""

    rtt_ms: float
    """Smoothed time until a message is acknowledged, the peer's work included; 0 until known."""
    num_unacked: int


class Link:
    """The two halves differ only in who dials; `on_body(link, body, arrived_ns, decode_ns)` takes what arrives."""

    def __init__(
        self,
        session: Session,
        clock: Clock,
        on_body: Callable[[Link, Body, int, int], None],
    ) -> None:
        self.peer = ""
        self.is_up = False
        self.counters = LinkCounters()
        self._session = session
        self._clock = clock
        self._on_body = on_body
        self._outbox: deque[Frame] = deque()
        self._wake = asyncio.Event()

    def post(self, body: Body, *, keep: bool = False) -> bool:
        """Queue a message. Returns False where it will not be sent: no connection, and not worth keeping."""
        if not self.is_up and not keep:
            return False
        frame = self._session.post(body, self._clock.now_ns(), keep=keep, num_bytes=payload_bytes(body))
        if self.is_up:
            self._outbox.append(frame)
            self._wake.set()
        return True

    @property
    def num_waiting(self) -> int:
        """Frames queued and not yet handed to gRPC."""
        return len(self._outbox)

    @property
    def rtt_ns(self) -> int:
        """Smoothed time from posting a message to its acknowledgement, the peer's work included; 0 until known."""
        return self._session.rtt_ns

    def profile(self) -> LinkProfile:
        return LinkProfile(self._session.rtt_ns / 1e6, self._session.num_unacked)

    def opening(self) -> bytes:
        """First bytes of a stream."""
        return frame_to_wire(Frame(0, 0, self._session.opening())).SerializeToString()

    def opened(self, raw: bytes) -> None:
        """Take the peer's first bytes and become ready to post. Raises BadFrame."""
        frame = frame_from_wire(parse_frame(raw))
        if not isinstance(frame.body, Open):
            raise BadFrame("the first frame of a stream must be Open")
        self.peer = frame.body.node
        self._outbox.clear()
        self._outbox.extend(self._session.opened(frame.body))
        self.is_up = True
        self._wake.set()

    async def serve(self, read: Read, write: Write) -> None:
        """Run one opened stream until the peer ends it; errors of `read` and `write` pass through."""
        writer = asyncio.create_task(self._write_all(write))
        # A writer that fails must end the reader too; waiting on both for every read would cost each sample a task.
        reader = asyncio.current_task()
        assert reader is not None
        writer.add_done_callback(lambda task: task.cancelled() or reader.cancel())
        try:
            while (raw := await read()) is not None:
                self._take(raw)
        except asyncio.CancelledError:
            if writer.done() and not writer.cancelled():
                writer.result()
            raise
        finally:
            self.is_up = False
            writer.cancel()

    def _take(self, raw: bytes) -> None:
        arrived_ns = self._clock.now_ns()
        frame = frame_from_wire(parse_frame(raw))
        counters = self.counters
        counters.received_frames += 1
        if frame.body is not None:
            payload = payload_bytes(frame.body)
            counters.received_payload_bytes += payload
            counters.received_framing_bytes += len(raw) - payload + FRAME_OVERHEAD_BYTES
        body = self._session.receive(frame, arrived_ns)
        if body is not None:
            self._on_body(self, body, arrived_ns, self._clock.now_ns() - arrived_ns)
        acknowledgement = self._session.acknowledgement()
        if acknowledgement is not None:
            self._outbox.append(acknowledgement)
            self._wake.set()

    async def _write_all(self, write: Write) -> None:
        outbox, counters = self._outbox, self.counters
        while True:
            while outbox:
                frame = outbox.popleft()
                raw = frame_to_wire(frame).SerializeToString()
                counters.sent_frames += 1
                payload = 0
                if frame.body is not None:
                    payload = payload_bytes(frame.body)
                    for tensor in tensors(frame.body):
                        by_codec = counters.sent_by_codec
                        by_codec[tensor.codec] = by_codec.get(tensor.codec, 0) + len(tensor.data)
                counters.sent_payload_bytes += payload
                counters.sent_framing_bytes += len(raw) - payload + FRAME_OVERHEAD_BYTES
                await write(raw)
            self._wake.clear()
            await self._wake.wait()


def tensors(body: Body) -> list[Payload]:
    """The coded tensors of a message."""
    if isinstance(body, (Part, Verdict)):
        found = list(body.outputs.values())
        if isinstance(body, Part) and body.feature is not None:
            found.append(body.feature)
        return found
    if isinstance(body, Features) and body.feature is not None:
        return [body.feature]
    return []


def payload_bytes(body: Body) -> int:
    """Bytes of coded tensors in a message."""
    return sum(len(tensor.data) for tensor in tensors(body))
