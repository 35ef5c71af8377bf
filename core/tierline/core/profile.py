"""A Profile: what was measured on the nodes of one hierarchy, for one Bundle and the cuts that it offers.

Not every piece of the network is measured on every node: with k cuts there are k (k + 1) / 2. `NodeProfile.piece`
answers for the others by adding and subtracting measured ones, and says of how many the answer is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import msgspec

from tierline.core.candidates import INPUT as INPUT
from tierline.core.candidates import OUTPUT as OUTPUT
from tierline.core.errors import PlanError
from tierline.core.types import Tier

SCHEMA = 1

RateFrom = Literal["payloads", "probe"]


class SectionTime(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One run of the operators between two cuts. Durations are of the whole batch."""

    first: str
    last: str
    engine: str
    """Token, such as `onnxruntime:cuda`."""
    precision: str
    """dtype of the arithmetic."""
    batch: int
    p50_ns: int
    spread_ns: int
    """Upper less lower quartile."""
    num_runs: int
    is_stable: bool = True
    """False: it was still getting faster or slower when the time allowed for warming up was over."""


class HeadTime(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One run of an exit's head, from the tensor of its cut to logits."""

    exit: str
    engine: str
    precision: str
    batch: int
    p50_ns: int
    spread_ns: int
    num_runs: int
    is_stable: bool = True


class CodecTime(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One row of the tensor at a cut, coded as one message; medians over rows of the calibration split."""

    cut: str
    token: str
    encode_ns: int
    decode_ns: int
    num_bytes: float
    """Mean."""
    max_bytes: int
    num_rows: int


class LinkTime(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The link from a node to its parent."""

    node: str
    rtt_ms: float
    """Shortest of several round trips of an empty message: what the way takes without waiting."""
    up_bps: float
    """Bits per second towards the parent, gRPC's framing included."""
    down_bps: float
    measured_over_s: float
    """How long bytes were counted."""
    up_from: RateFrom = "probe"
    """`payloads`: counted on the samples themselves, while they filled the link."""
    down_from: RateFrom = "probe"


class NodeProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one node measured on itself."""

    node: str
    tier: Tier
    made_at: str
    """UTC, ISO 8601."""
    stamp: dict[str, Any]
    """Hardware, versions, power mode, temperatures and clocks, at the end of the measurement."""
    sections: tuple[SectionTime, ...] = ()
    heads: tuple[HeadTime, ...] = ()
    codecs: tuple[CodecTime, ...] = ()
    busy_share: float = 0.0
    """CPU time that the rest of the process took meanwhile, in cores: samples that were answered disturb what is
    measured beside them."""
    num_answered: int = 0
    """Parts that were answered here meanwhile."""
    skipped: dict[str, str] = {}
    """What could not be measured, and why."""

    def piece(self, first: str, last: str, engine: str, *, precision: str = "float32", batch: int = 1) -> Piece | None:
        """Time between two cuts: measured, or the sum and difference of the fewest measured pieces. None where these
        do not lead from one to the other."""
        return _shortest(
            first,
            last,
            ((t.first, t.last, t.p50_ns) for t in self.sections if _is(t, engine, precision, batch)),
        )

    def head(self, exit_: str, engine: str, *, precision: str = "float32", batch: int = 1) -> HeadTime | None:
        return next((t for t in self.heads if t.exit == exit_ and _is(t, engine, precision, batch)), None)

    def codec(self, cut: str, token: str) -> CodecTime | None:
        return next((t for t in self.codecs if (t.cut, t.token) == (cut, token)), None)


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of one Bundle on one hierarchy."""

    schema: int
    bundle: str
    """Digest of the Bundle whose cuts are spoken of."""
    nodes: dict[str, NodeProfile]
    links: dict[str, LinkTime]
    """By the child's id."""
    missing: dict[str, str] = {}
    """Nodes of the hierarchy that are not in it, and why."""

    def document(self) -> bytes:
        """Canonical JSON."""
        return msgspec.json.encode(self, order="sorted")

    def digest(self) -> str:
        """sha256 of the document."""
        return hashlib.sha256(self.document()).hexdigest()


class Piece(NamedTuple):
    """An answer about a piece of the network."""

    ns: int
    num_measured: int
    """1: it was measured itself; else it was made of so many measured pieces."""


def parse_profile(raw: bytes, where: str) -> Profile:
    """Decode a Profile document; `where` names it in errors."""
    try:
        profile = msgspec.json.decode(raw, type=Profile)
    except msgspec.MsgspecError as error:
        raise PlanError(f"{where}: not a Profile: {error}") from None
    if profile.schema != SCHEMA:
        raise PlanError(f"{where}: schema {profile.schema}, this version reads schema {SCHEMA}; measure again")
    return profile


def _is(time: SectionTime | HeadTime, engine: str, precision: str, batch: int) -> bool:
    return (time.engine, time.precision, time.batch) == (engine, precision, batch)


def _shortest(first: str, last: str, measured: Iterable[tuple[str, str, int]]) -> Piece | None:
    """A way from one cut to another over measured pieces, of which each may also be gone back, with fewest pieces:
    breadth-first. A difference of two long times may be below zero, which no time is."""
    steps: dict[str, list[tuple[str, int]]] = {}
    for at, to, ns in measured:
        steps.setdefault(at, []).append((to, ns))
        steps.setdefault(to, []).append((at, -ns))
    if first == last:
        return Piece(0, 0)
    seen, front = {first}, [(first, 0)]
    num_measured = 0
    while front:
        num_measured += 1
        beyond: list[tuple[str, int]] = []
        for at, before_ns in front:
            for to, ns in steps.get(at, ()):
                if to == last:
                    return Piece(max(0, before_ns + ns), num_measured)
                if to not in seen:
                    seen.add(to)
                    beyond.append((to, before_ns + ns))
        front = beyond
    return None
