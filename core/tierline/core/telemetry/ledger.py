"""One sample's journey as named durations. Durations only: clocks of two nodes are never subtracted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

SPANS = (
    "capture",  # waiting for and reading the sensor
    "preprocess",  # resize, colour, normalisation
    "section",  # the engine running this node's part of the network
    "aggregate",  # fusing parts of one sample
    "exit",  # scoring outputs and deciding
    "encode",  # codec, and building messages for the parent
    "send",  # the link upwards: round trip to the parent less the parent's residence
    "queue",  # waiting for other views, for a batch, for the engine
    "pull",  # asking children for features until the last arrived
    "decode",  # parsing messages and codec
    "reply",  # building the verdict for children, or handing the answer to sinks
)
"""Fixed span names, in wire order. Appending is compatible; the order never changes."""

SPAN_INDEX: Mapping[str, int] = MappingProxyType({name: i for i, name in enumerate(SPANS)})


@dataclass(frozen=True, slots=True)
class Hop:
    """What one node spent on one sample, from its arrival to the reply's departure.

    `spans_ns[i]` belongs to `SPANS[i]`. The node's wait for its parent is split into the parent's own hops and `send`.
    """

    node: str
    tier: str
    residence_ns: int
    spans_ns: tuple[int, ...]

    def named(self) -> dict[str, int]:
        """Non-zero spans by name."""
        return {name: ns for name, ns in zip(SPANS, self.spans_ns, strict=False) if ns}


Ledger = tuple[Hop, ...]
"""Hops from the origin upwards: `ledger[0]` is the node where the sample entered."""
