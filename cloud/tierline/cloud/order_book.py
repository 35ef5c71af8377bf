"""What each node of a hierarchy is told to measure, and the files that it needs for it.

Pieces between neighbouring candidate cuts are measured on every node: their sums answer for any range. A joined Section
is not just the sum of its pieces, so joined ranges are measured, too: prefixes of the network on devices, suffixes at
the root, and on the nodes between them all of both, and the ranges between two inner cuts while there are few.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from typing import Any

import msgspec
import numpy as np

from tierline.core.bundle import Bundle, digest_of
from tierline.core.candidates import candidates_of, read_outcomes
from tierline.core.errors import BundleError
from tierline.core.flow.orders import Order, OrderedHead, OrderedPiece
from tierline.core.link.fleet import ProfileWish
from tierline.core.plan import Plan
from tierline.core.preprocess import Preprocessor
from tierline.core.types import Tier

NUM_ROWS = 32
"""Samples of the calibration split that nodes measure with."""
BATCHES = (1, 8)
CODECS = (
    "raw", "float16", "bfloat16", "affine:8", "affine:4", "affine:2",
    "affine:8+cabac", "affine:4+cabac", "sparse_bitmap+affine:4", "jpeg", "webp",
)  # fmt: skip
FEW_RANGES = 15
"""Ranges between two inner cuts are measured themselves up to so many; else they are sums and differences."""
MAX_JOINED_BYTES = 64 << 20
"""Joined ranges that a node would have to fetch; above, it measures neighbouring cuts only."""

Range = tuple[int, int]
"""Positions of two candidate cuts."""


@dataclass
class OrderBook:
    """Files and orders of one round. Joining pieces takes a while: made on a thread."""

    bundle: Bundle
    plan: Plan
    wish: ProfileWish
    id: str
    notes: dict[str, dict[str, str]] = field(default_factory=dict)
    """By node: what was left out, and why."""

    def __post_init__(self) -> None:
        manifest = self.bundle.manifest
        self._candidates = candidates_of(manifest)
        self._files: dict[str, bytes] = {}
        images = read_outcomes(self.bundle).images[:NUM_ROWS]
        if not len(images):
            raise BundleError(f"Bundle {manifest.name!r}: keeps no images to measure with; make it anew")
        plain = msgspec.structs.replace(
            manifest.preprocess,
            mean=(0.0,) * manifest.preprocess.channels,
            std=(1 / 255,) * manifest.preprocess.channels,
        )
        self._inputs = self._keep(_npy(Preprocessor(manifest.preprocess).many(images)))
        self._images = self._keep(_npy(np.rint(Preprocessor(plain).many(images)).astype(np.uint8)))
        self._joined: dict[Range, str] = {}
        kinds = {self.kind(node) for node in self.plan.nodes if not self.wish.nodes or node in self.wish.nodes}
        self._ranges = {kind: ranges(kind, len(self._candidates.cuts)) for kind in kinds}
        if any(self._ranges.values()):
            self._join(sorted({range_ for found in self._ranges.values() for range_ in found}))

    def kind(self, node: str) -> Tier:
        """The root is a cloud whatever it is called: it always answers."""
        placement = self.plan.nodes[node]
        return Tier.CLOUD if not placement.parent else placement.tier

    def order(self, node: str) -> tuple[Order, dict[str, bytes]]:
        """For one node, and the files that are not in its Bundle."""
        cuts, kind = self._candidates.cuts, self.kind(node)
        listed = self.bundle.manifest.files
        joined = self._ranges[kind]
        size = sum(len(self._files[self._joined[range_]]) for range_ in joined)
        if kind is not Tier.CLOUD and size > MAX_JOINED_BYTES:
            self.notes[node] = {"joined ranges": f"{size >> 20} MiB to fetch; sums of neighbouring cuts stand for them"}
            joined = []
        steps = [
            OrderedPiece(a.name, b.name, "float32", listed[b.piece.file])
            for a, b in pairwise(cuts)
            if b.piece is not None
        ]
        steps += [OrderedPiece(cuts[a].name, cuts[b].name, "float32", self._joined[a, b]) for a, b in joined]
        heads = [
            OrderedHead(cut.exit.name, cut.name, "float32", listed[cut.exit.head.file])
            for cut in cuts
            if cut.exit is not None and cut.exit.head is not None
        ]
        in_use = {*self.plan.codecs[:-1], *self.plan.links.values()}
        order = Order(
            self.id,
            node,
            self._inputs,
            self._images,
            tuple(steps),
            tuple(heads),
            codecs=self.wish.codecs or tuple(dict.fromkeys([*CODECS, *sorted(in_use)])),
            engines=self.wish.engines,
            batches=self.wish.batches or BATCHES,
            **({"run_s": self.wish.run_s} if self.wish.run_s else {}),
        )
        return order, {digest: self._files[digest] for digest in order.digests() if digest in self._files}

    def _keep(self, raw: bytes) -> str:
        digest = digest_of(raw)
        self._files[digest] = raw
        return digest

    def _join(self, wanted: Sequence[Range]) -> None:
        # Only a cloud that profiles pays for the packages that read networks.
        from tierline.models.exits.derive import section_between

        cuts = self._candidates.cuts
        files = {cut.piece.file: self.bundle.read(cut.piece.file) for cut in cuts if cut.piece is not None}
        for a, b in wanted:
            _, raw = section_between(cuts[a : b + 1], None, files, f"{cuts[a].name}..{cuts[b].name}", is_first=a == 0)
            self._joined[a, b] = self._keep(raw)


def ranges(tier: Tier, num_cuts: int) -> list[Range]:
    """Ranges of more than one piece that a node of this tier measures as one Section; `num_cuts` with both ends."""
    last = num_cuts - 1
    inner = [(a, b) for a, b in combinations(range(1, last), 2) if b - a > 1]
    prefixes = [(0, b) for b in range(2, last + 1)]
    suffixes = [(a, last) for a in range(1, last - 1)]
    if tier is Tier.DEVICE:
        return prefixes
    if tier is Tier.CLOUD:
        return [(0, last), *suffixes] if last > 1 else []
    return [*prefixes, *suffixes, *(inner if len(inner) <= FEW_RANGES else [])]


def _npy(rows: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, rows, allow_pickle=False)
    return buffer.getvalue()
