"""What each node of a hierarchy is told to measure, and the files that it needs for it.

Pieces between neighbouring candidate cuts are measured on every node: their sums answer for any range. A joined Section
is not just the sum of its pieces, so joined ranges are measured, too: prefixes of the network on devices, suffixes at
the root, and on the nodes between them all of both, and the ranges between two inner cuts while there are few. All of
them in every precision; a node measures those that its engines compute in.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from typing import Any

import msgspec
import numpy as np

from tierline.core.bundle import Bundle, Section, digest_of
from tierline.core.candidates import candidates_of, read_outcomes
from tierline.core.errors import BundleError
from tierline.core.flow.orders import Order, OrderedHead, OrderedPiece
from tierline.core.link.fleet import ProfileWish
from tierline.core.plan import Plan
from tierline.core.preprocess import Preprocessor
from tierline.core.types import FLOAT32, PRECISIONS, Array, Tier

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
        self._precisions = (FLOAT32, *(p for p in self.wish.precisions or PRECISIONS if p != FLOAT32))
        self._rows: dict[str, Array] = {}
        self._joined: dict[Range, dict[str, str]] = {}
        """Digests by precision, as below."""
        self._unfit: dict[str, str] = {}
        if len(self._precisions) > 1:
            from tierline.models.precision.bundle import cut_rows

            self._rows = cut_rows(self.bundle)
        cuts = self._candidates.cuts
        self._pieces = {b.name: self._section(b.piece, a.name) for a, b in pairwise(cuts) if b.piece is not None}
        self._heads = {
            (cut.exit.name, cut.name): self._section(cut.exit.head, cut.name)
            for cut in cuts
            if cut.exit is not None and cut.exit.head is not None
        }
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
        joined = self._ranges[kind]
        size = sum(len(self._files[digest]) for range_ in joined for digest in self._joined[range_].values())
        if kind is not Tier.CLOUD and size > MAX_JOINED_BYTES:
            self.notes[node] = {"joined ranges": f"{size >> 20} MiB to fetch; sums of neighbouring cuts stand for them"}
            joined = []
        steps: list[OrderedPiece] = []
        heads: list[OrderedHead] = []
        for precision in self._precisions:
            found = [(a.name, b.name, self._pieces[b.name]) for a, b in pairwise(cuts)]
            found += [(cuts[a].name, cuts[b].name, self._joined[a, b]) for a, b in joined]
            steps += [OrderedPiece(a, b, precision, made[precision]) for a, b, made in found if precision in made]
            heads += [
                OrderedHead(name, cut, precision, made[precision])
                for (name, cut), made in self._heads.items()
                if precision in made
            ]
        if self._unfit:
            self.notes[node] = {**self.notes.get(node, {}), **self._unfit}
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
        listed = set(self.bundle.manifest.files.values())
        return order, {digest: self._files[digest] for digest in order.digests() if digest not in listed}

    def _keep(self, raw: bytes) -> str:
        digest = digest_of(raw)
        self._files[digest] = raw
        return digest

    def _section(self, section: Section, at: str) -> dict[str, str]:
        """Digests of a piece or head of the Bundle, by precision."""
        return self._lower(self.bundle.read(section.file), next(iter(section.inputs)), at, section.name)

    def _join(self, wanted: Sequence[Range]) -> None:
        # Only a cloud that profiles pays for the packages that read networks.
        from tierline.models.exits.derive import section_between

        cuts = self._candidates.cuts
        files = {cut.piece.file: self.bundle.read(cut.piece.file) for cut in cuts if cut.piece is not None}
        for a, b in wanted:
            section, raw = section_between(
                cuts[a : b + 1], None, files, f"{cuts[a].name}..{cuts[b].name}", is_first=a == 0
            )
            self._joined[a, b] = self._lower(raw, next(iter(section.inputs)), cuts[a].name, section.name)

    def _lower(self, raw: bytes, source: str, at: str, name: str) -> dict[str, str]:
        """Keep a file that begins at a cut in all precisions; their digests. What cannot be converted is left to
        float32, and that is noted."""
        made: dict[str, bytes] = {}
        if len(self._precisions) > 1:
            from tierline.models.precision.convert import convert

            try:
                made = convert(raw, self._precisions[1:], {source: self._rows[at]}, name)
            except BundleError as error:
                self._unfit[f"{name} below {FLOAT32}"] = str(error)
        return {precision: self._keep(file) for precision, file in {FLOAT32: raw, **made}.items()}


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
