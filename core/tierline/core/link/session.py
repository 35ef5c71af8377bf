"""One side of a conversation between two nodes that outlives its connections. No I/O, no clock of its own.

Frames with a body are numbered from 1 within the sender's epoch (one epoch per process start). Each side tells the
other the highest number it received without a gap, so that

- a frame received twice is delivered once,
- a frame posted with `keep` is sent again after a reconnection until it is acknowledged, in order,
- other frames (samples, which grow old) are not sent again: whoever posted them has answered without the peer,
- a peer that restarted (new epoch) starts from nothing: kept frames go to it again, its numbering begins at 1.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from tierline.core.errors import BadFrame
from tierline.core.link.messages import Body, Frame, Open

ACK_EVERY = 16
"""A bare acknowledgement goes out after so many frames without anything to carry one."""


BUSY_FRAMES = 2
"""So many unacknowledged frames keep a congested peer busy; what comes meanwhile can share a message."""


BEHIND = 4
"""Round trips that grow so much mean a queue at the peer, not the jitter of a mobile link."""


@dataclass(slots=True)
class _Posted:
    seq: int
    body: Body
    keep: bool
    posted_ns: int


class Session:
    """Numbering, acknowledgement, de-duplication and resumption for one peer."""

    def __init__(self, node: str, epoch: int) -> None:
        self.node = node
        self.epoch = epoch
        self.peer_epoch = 0
        self.rtt_ns = 0
        """Smoothed time from posting a frame to its acknowledgement, 0 until known. It includes the peer's work."""
        self.rtt_min_ns = 0
        """Lowest of late: it creeps up, so that a longer way is believed after some hundred messages."""
        self._next_seq = 1
        self._received = 0
        self._told = 0
        self._posted: deque[_Posted] = deque()

    @property
    def received(self) -> int:
        """Highest number received without a gap in the peer's epoch."""
        return self._received

    @property
    def is_congested(self) -> bool:
        """Messages wait at the peer: several are on their way, and they take far longer than on an idle link."""
        return len(self._posted) >= BUSY_FRAMES and self.rtt_ns > BEHIND * self.rtt_min_ns

    def opening(self) -> Open:
        """What to say first on a new connection."""
        return Open(self.node, self.epoch, self.peer_epoch, self._received)

    def opened(self, peer: Open) -> list[Frame]:
        """Take the peer's first words; returns the kept frames to send again. Raises BadFrame."""
        if peer.epoch != self.peer_epoch:
            self.peer_epoch = peer.epoch
            self._received = self._told = 0
        if peer.peer_epoch == self.epoch:
            self._acknowledge(peer.received, 0)
        kept = [p for p in self._posted if p.keep]
        if peer.peer_epoch != self.epoch or len(kept) != len(self._posted):
            # The peer misses numbers (a fresh peer, or samples we do not repeat): number anew what is left.
            base = peer.received if peer.peer_epoch == self.epoch else 0
            for offset, posted in enumerate(kept, start=1):
                posted.seq = base + offset
            self._next_seq = base + len(kept) + 1
            self._posted = deque(kept)
        return [Frame(p.seq, self._ack(), p.body) for p in self._posted]

    def post(self, body: Body, now_ns: int, *, keep: bool = False) -> Frame:
        """Number a message. The caller sends the frame if a connection is open."""
        frame = Frame(self._next_seq, self._ack(), body)
        self._posted.append(_Posted(self._next_seq, body, keep, now_ns))
        self._next_seq += 1
        return frame

    def receive(self, frame: Frame, now_ns: int) -> Body | None:
        """The body to deliver, or None for a duplicate or a bare acknowledgement. Raises BadFrame on a gap, or where it
        acknowledges what was never sent."""
        self._acknowledge(frame.ack, now_ns)
        if frame.body is None or frame.seq <= self._received:
            return None
        if frame.seq != self._received + 1:
            raise BadFrame(f"frame {frame.seq} after {self._received}: {frame.seq - self._received - 1} missing")
        self._received = frame.seq
        return frame.body

    def acknowledgement(self) -> Frame | None:
        """A bare acknowledgement if enough was received since the last, else None."""
        return Frame(0, self._ack()) if self._received - self._told >= ACK_EVERY else None

    def _ack(self) -> int:
        self._told = self._received
        return self._received

    def _acknowledge(self, ack: int, now_ns: int) -> None:
        if ack >= self._next_seq:
            raise BadFrame(f"acknowledges frame {ack}, {self._next_seq - 1} were sent")
        waiting = self._posted
        while waiting and waiting[0].seq <= ack:
            posted = waiting.popleft()
            if now_ns and posted.seq == ack:
                sample = now_ns - posted.posted_ns
                self.rtt_ns = sample if self.rtt_ns == 0 else (7 * self.rtt_ns + sample) // 8
                creeping = self.rtt_min_ns + self.rtt_min_ns // 256
                self.rtt_min_ns = min(creeping, sample) if self.rtt_min_ns else sample
