"""What a simulated run is told about time and mishaps, and what it counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tierline.core.link.letters import StepKind
from tierline.core.types import NodeId

ROOT = NodeId("root")
"""Other end of the edges that carry sums: (node, ROOT) up, (ROOT, node) down."""

Participants = Mapping[tuple[NodeId, StepKind, int, int], frozenset[NodeId]]
"""Who took part: whom each wait that time decided had heard, by node, step, round and number of the wait in its turn.
What `JournalReader.participants` says of a run over links, `Memory` goes by."""


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """One direction of an edge. 0 bit/s stands for a link without a limit."""

    latency_s: float = 0.0
    bandwidth_bps: float = 0.0


@dataclass(frozen=True, slots=True)
class World:
    """How long things take and what goes wrong. The maps name single nodes and directed edges that differ."""

    compute_s: float = 0.0
    """Time of one Compute."""
    compute_of: Mapping[NodeId, float] = field(default_factory=dict)
    link: LinkSpec = field(default_factory=LinkSpec)
    link_of: Mapping[tuple[NodeId, NodeId], LinkSpec] = field(default_factory=dict)
    loss: float = 0.0
    """Probability that a message of an Exchange vanishes. Sums are carried reliably."""
    seed: int = 0
    """Of the losses."""


@dataclass(slots=True)
class Counts:
    """What moved so far."""

    num_messages: int = 0
    num_bytes: int = 0
    """Of values in messages and sums, without framing; of sums the way up only."""
    num_lost: int = 0
    num_late: int = 0
    """Messages that came after their receiver had finished the turn, and parts of sums that had closed."""
