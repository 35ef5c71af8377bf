"""What child and parent say to each other about samples. Plain values; `core.wire` translates them.

Messages are not changed once made. They are not frozen, since freezing costs every hop a microsecond per field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tierline.core.types import Payload, SampleId

Ids = Sequence[SampleId]


@dataclass(slots=True)
class Part:
    """Child to parent: rows of one part. Rows of all fields correspond to `ids`."""

    level: int
    name: str
    ids: Ids
    plan: int
    budget_ms: Sequence[float]
    outputs: Mapping[str, Payload]
    feature: Payload | None = None
    fused: bool = False
    """This level's exit was decided below; `feature` is the next Section's input."""
    num_views: Sequence[int] = ()
    """Only where fused."""


@dataclass(slots=True)
class Pull:
    """Parent to child: send the features of these samples."""

    level: int
    name: str
    ids: Ids


@dataclass(slots=True)
class Features:
    """Child to parent: what was pulled; `gone` are no longer held and count as absent."""

    level: int
    name: str
    ids: Ids
    feature: Payload | None
    gone: Ids = ()


@dataclass(slots=True)
class HopTimes:
    """Residence and spans of one node for each row, in nanoseconds; `rows_ns[i] = (residence, *spans)`."""

    node: str
    tier: str
    rows_ns: Sequence[Sequence[int]]


@dataclass(slots=True)
class Verdict:
    """Parent to child: the answers, with the ledger of the parent and everything above it."""

    name: str
    ids: Ids
    exits: Sequence[str]
    """Exit per row."""
    outputs: Mapping[str, Payload]
    num_views: Sequence[int]
    degraded: Sequence[str]
    """Reason per row; empty string where not degraded."""
    hops: Sequence[HopTimes]
    plan: int = 0


@dataclass(slots=True)
class Refused:
    """Parent to child: these rows cannot be used; the child answers them itself."""

    level: int
    name: str
    ids: Ids
    code: str
    message: str


@dataclass(slots=True)
class CaptureNow:
    """Parent to child: capture every view now, under these identities."""

    ids: Ids
    budget_ms: float


@dataclass(slots=True)
class Mode:
    """Parent to child: send features with the outputs (`eager`), or only when pulled."""

    level: int
    eager: bool


@dataclass(slots=True)
class Open:
    """First frame of each side of a stream."""

    node: str
    epoch: int
    peer_epoch: int = 0
    received: int = 0


Body = Part | Pull | Features | Verdict | Refused | CaptureNow | Mode | Open
"""Anything that travels in a frame."""


@dataclass(slots=True)
class Frame:
    """A numbered message of one session; `body` is None for a bare acknowledgement."""

    seq: int
    ack: int
    body: Body | None = None
