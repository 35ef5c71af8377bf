"""What learning nodes say to each other, and what a stream between two processes carries. Plain values;
`core.link.learning_wire` translates them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tierline.core.link.fields import Rope
from tierline.core.types import Array, NodeId

StepKind = Literal["turn", "resync"]
LetterKind = Literal["message", "part", "total", "report"]


@dataclass(frozen=True, slots=True)
class Head:
    """Whose letter it is, and what it belongs to."""

    run: str
    sender: NodeId
    receiver: NodeId
    seq: int
    """Counted by the sender over all its letters."""
    step: StepKind
    round: int
    tag: str
    kind: LetterKind = "message"
    mark: tuple[int, int] | None = None
    """Of a letter in a stream: the sender's round, and how many of this tag it had sent to this receiver in it."""

    def __str__(self) -> str:
        return f"{self.sender}: {self.kind} {self.tag!r} of {self.step} {self.round} for {self.receiver}"


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The part of a sum that `members` have made: int64 in units of 2^-fraction_bits, weights in units of 2^-32."""

    integers: Array
    weight_units: int
    fraction_bits: int
    members: tuple[NodeId, ...]
    group: tuple[NodeId, ...] = ()
    """All who may add to the sum: who passes parts on can tell which of them to pre-add."""


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """Named arrays and numbers, or a part of a sum."""

    arrays: Mapping[str, Array] = field(default_factory=dict)
    numbers: Mapping[str, int | float] = field(default_factory=dict)
    part: Part | None = None


@dataclass(slots=True)
class Letter:
    """A letter under way: `content` is serialised, not written to any more, and shared by the letters of one message to
    several receivers."""

    head: Head
    content: Rope
    num_bytes: int = field(init=False, compare=False)
    is_kept: bool = field(default=True, compare=False)
    """It is in its sender's journal; before that, nobody may have the whole of it."""

    def __post_init__(self) -> None:
        self.num_bytes = sum(map(len, self.content))


@dataclass(frozen=True, slots=True)
class Present:
    """Learning nodes that can be reached through the sender of this."""

    nodes: tuple[NodeId, ...]
    run: str = ""
    """Which run the stream is for."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some bytes of a letter; the first piece has its head and the length of the whole."""

    data: Rope
    head: Head | None = None
    num_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Received:
    """Bytes of contents received on this stream so far."""

    num_bytes: int


@dataclass(frozen=True, slots=True)
class Settled:
    """`receiver` needs these letters of `sender` no more."""

    run: str
    sender: NodeId
    receiver: NodeId
    seqs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Declined:
    """`receiver` cannot use a letter of `sender`."""

    run: str
    sender: NodeId
    receiver: NodeId
    seq: int
    code: str
    message: str


Note = Settled | Declined
"""What goes back to the sender of a letter."""

Parcel = Present | Piece | Received | Note
