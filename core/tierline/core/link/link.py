"""One connection between child and parent, as either side holds it: posting, counting, delivering.

A `Link` lives as long as the node; streams come and go below it (`serve`). There is one task per stream, which reads.
Bodies are delivered by calling `on_body` from it, and what is posted meanwhile leaves at once: a queue or a second task
would cost every sample one more turn of the event loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tierline.core.errors import BadFrame
from tierline.core.link.messages import Body, Features, Frame, Open, Part, Verdict
from tierline.core.link.rate import MIN_MESSAGE_BYTES, RateMeter
from tierline.core.link.session import Session
from tierline.core.link.writer import Write, Writer, writing
from tierline.core.protocols import Clock
from tierline.core.types import Payload
from tierline.core.wire import FRAME_OVERHEAD_BYTES, frame_from_wire, frame_to_wire, parse_frame

Read = Callable[[], Awaitable[bytes | None]]


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
        self.rate = RateMeter()
        """Of what is sent."""
        self._session = session
        self._clock = clock
        self._on_body = on_body
        self._outbox: deque[Frame] = deque()
        self._writer: Writer | None = None

    def post(self, body: Body, *, keep: bool = False) -> bool:
        """Queue a message. Returns False where it will not be sent: no connection, and not worth keeping."""
        if not self.is_up and not keep:
            return False
        frame = self._session.post(body, self._clock.now_ns(), keep=keep)
        if self.is_up:
            self._outbox.append(frame)
            if self._writer is not None:
                self._writer.kick()
        return True

    @property
    def rtt_ns(self) -> int:
        """Smoothed time from posting a message to its acknowledgement, the peer's work included; 0 until known."""
        return self._session.rtt_ns

    @property
    def rtt_min_ns(self) -> int:
        """Shortest of late, the peer's work included; 0 until known."""
        return self._session.rtt_min_ns

    def sent_bps(self) -> tuple[float, float]:
        """Bits per second towards the peer as samples show it, and the seconds of counting; (0, 0): they do not."""
        return self.rate.bps(self._clock.now_ns())

    @property
    def peer_epoch(self) -> int:
        """Which process of the peer this is; 0 until known."""
        return self._session.peer_epoch

    @property
    def is_congested(self) -> bool:
        """More messages would only wait at the peer: what is to be sent had better share one."""
        return self._session.is_congested

    def opening(self) -> bytes:
        """First bytes of a stream."""
        return frame_to_wire(Frame(0, 0, self._session.opening())).SerializeToString()

    def opened(self, raw: bytes) -> None:
        """Take the peer's first bytes and become ready to post. Raises BadFrame."""
        frame = frame_from_wire(parse_frame(raw))
        if not isinstance(frame.body, Open):
            raise BadFrame("the first frame of a stream must be Open")
        self.peer = frame.body.node
        self.rate.reset()
        self._outbox.clear()
        self._outbox.extend(self._session.opened(frame.body))
        self.is_up = True

    async def serve(self, read: Read, write: Write) -> None:
        """Run one opened stream until the peer ends it; errors of `read` and `write` pass through."""
        with writing(write, self._next_message) as writer:
            self._writer = writer
            writer.kick()
            try:
                while (raw := await read()) is not None:
                    self._take(raw)
            finally:
                self.is_up = False
                if self._writer is writer:
                    self._writer = None

    def _take(self, raw: bytes) -> None:
        arrived_ns = self._clock.now_ns()
        frame = frame_from_wire(parse_frame(raw))
        body = self._session.receive(frame, arrived_ns)
        if body is not None:
            self._on_body(self, body, arrived_ns, self._clock.now_ns() - arrived_ns)
        # Counted afterwards: whatever answers the message has left already.
        if self.rate.waits:
            self.rate.acknowledged(frame.ack, arrived_ns)
        counters = self.counters
        counters.received_frames += 1
        if frame.body is not None:
            payload = payload_bytes(frame.body)
            counters.received_payload_bytes += payload
            counters.received_framing_bytes += len(raw) - payload + FRAME_OVERHEAD_BYTES
        acknowledgement = self._session.acknowledgement()
        if acknowledgement is not None:
            self._outbox.append(acknowledgement)
            if self._writer is not None:
                self._writer.kick()

    def _next_message(self) -> bytes | None:
        if not self._outbox:
            return None
        frame = self._outbox.popleft()
        raw = frame_to_wire(frame).SerializeToString()
        counters, payload = self.counters, 0
        counters.sent_frames += 1
        if frame.body is not None:
            for tensor in tensors(frame.body):
                payload += len(tensor.data)
                by_codec = counters.sent_by_codec
                by_codec[tensor.codec] = by_codec.get(tensor.codec, 0) + len(tensor.data)
        counters.sent_payload_bytes += payload
        counters.sent_framing_bytes += len(raw) - payload + FRAME_OVERHEAD_BYTES
        if payload >= MIN_MESSAGE_BYTES:
            self.rate.sent(frame.seq, len(raw) + FRAME_OVERHEAD_BYTES, self._clock.now_ns())
        return raw


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
    num_bytes = 0
    for tensor in tensors(body):
        num_bytes += len(tensor.data)
    return num_bytes
