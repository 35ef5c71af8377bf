"""What a Profile says about the pieces that a choice is made of; what it does not say, the choice cannot use.

A piece is measured as a run of its own, and every run has a fixed price o beside its operators. From ranges that were
measured both joined and piece by piece, o is the median of (sum of k pieces less joined range) / (k - 1). A range that
was not measured is then o + sum of (piece - o), and a head within a Section adds its time less o.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tierline.cloud.tuner.ladder import END, Stage, placed
from tierline.cloud.tuner.wire import part_framing, verdict_bytes
from tierline.core.plan import HierarchyNode
from tierline.core.profile import CodecTime, LinkTime, NodeProfile, Profile

Setting = tuple[str, str]
"""(engine token, precision)."""


@dataclass(frozen=True, slots=True)
class Run:
    """Stages on the way of one host, with the times of the engines chosen there."""

    path: tuple[HierarchyNode, ...]
    stages: tuple[Stage, ...]
    at: tuple[int, ...]
    """Position on the way, by stage."""
    links: tuple[LinkTime, ...]
    """Of all nodes of the way but the root."""
    ms: tuple[float, ...]
    """One row, by stage."""
    spread_ms: tuple[float, ...]
    batch_ms: tuple[Mapping[int, float], ...]
    """By stage: batch size to the time of the whole batch."""


class Measured:
    """A Profile as the cost model asks it."""

    def __init__(self, profile: Profile, cuts: Sequence[str]) -> None:
        self._profile, self._cuts = profile, tuple(cuts)
        self._times: dict[tuple[str, Stage, Setting], tuple[float, float, dict[int, float]] | None] = {}

    def node(self, node: str) -> NodeProfile | None:
        return self._profile.nodes.get(node)

    def settings(self, node: str) -> list[Setting]:
        """Engines and precisions that were measured on a node, in the order of the Profile."""
        found = self.node(node)
        return list(dict.fromkeys((t.engine, t.precision) for t in found.sections)) if found else []

    def stage(self, node: str, stage: Stage, setting: Setting) -> tuple[float, float, dict[int, float]] | None:
        """Milliseconds of one row, spread, and milliseconds by batch size; None where that was not measured."""
        key = (node, stage, setting)
        if key not in self._times:
            self._times[key] = self._stage(*key)
        return self._times[key]

    def _stage(self, node: str, stage: Stage, setting: Setting) -> tuple[float, float, dict[int, float]] | None:
        found = self.node(node)
        if found is None:
            return None
        engine, precision = setting
        mine = [t for t in found.sections if (t.engine, t.precision) == setting]
        exit_ = stage.exit if stage.exit != END else ""
        if stage.first == stage.last and not exit_:
            return 0.0, 0.0, dict.fromkeys({1, *(t.batch for t in mine)}, 0.0)
        by_batch: dict[int, float] = {}
        for batch in sorted({t.batch for t in mine}):
            ns = {(t.first, t.last): t.p50_ns for t in mine if t.batch == batch}
            price = self._price(ns)
            piece = self._range(ns, stage.first, stage.last, price)
            head = found.head(exit_, engine, precision=precision, batch=batch) if exit_ else None
            if piece is None:
                other = found.piece(stage.first, stage.last, engine, precision=precision, batch=batch)
                piece = None if other is None else float(other.ns)
            if piece is not None and (head is not None or not exit_):
                by_batch[batch] = (piece + (max(0.0, head.p50_ns - price) if head else 0.0)) / 1e6
        if 1 not in by_batch:
            return None
        spreads = [t.spread_ns for t in mine if (t.first, t.last, t.batch) == (stage.first, stage.last, 1)]
        one = found.head(exit_, engine, precision=precision)
        spreads += [one.spread_ns] if one is not None else []
        return by_batch[1], sum(ns**2 for ns in spreads) ** 0.5 / 1e6, by_batch

    def _steps(self, first: str, last: str) -> list[tuple[str, str]]:
        cuts = self._cuts
        start, end = cuts.index(first), cuts.index(last)
        return [(cuts[at], cuts[at + 1]) for at in range(start, end)]

    def _range(self, ns: Mapping[tuple[str, str], int], first: str, last: str, price: float) -> float | None:
        """Nanoseconds between two cuts, measured or of pieces."""
        if (first, last) in ns:
            return float(ns[first, last])
        steps = self._steps(first, last)
        if not all(step in ns for step in steps):
            return None
        return price + sum(max(0.0, ns[step] - price) for step in steps)

    def _price(self, ns: Mapping[tuple[str, str], int]) -> float:
        """Of a run, in nanoseconds; 0 where nothing tells."""
        found = []
        for (first, last), joined in ns.items():
            steps = self._steps(first, last)
            if len(steps) > 1 and all(step in ns for step in steps):
                found.append((sum(ns[step] for step in steps) - joined) / (len(steps) - 1))
        return max(0.0, float(np.median(found))) if found else 0.0

    def run(
        self, path: tuple[HierarchyNode, ...], stages: tuple[Stage, ...], settings: Mapping[str, Setting]
    ) -> Run | None:
        """Stages on one way with an engine by node; None where something was not measured."""
        at = placed(stages, path)
        times = [self.stage(path[i].id, stage, settings[path[i].id]) for i, stage in zip(at, stages, strict=True)]
        links = [self._profile.links.get(node.id) for node in path[:-1]]
        if any(found is None for found in times) or any(found is None for found in links[: at[-1]]):
            return None
        ms, spread, batches = zip(*(found for found in times if found is not None), strict=True)
        known = tuple(link for link in links if link is not None)
        return Run(path, stages, tuple(at), known, ms, spread, batches)

    def codec(self, lower: str, upper: str, cut: str, token: str) -> tuple[CodecTime, CodecTime] | None:
        """Times of a codec on both ends of a link; None where one of them was not measured."""
        ends = (self.node(lower), self.node(upper))
        found = [node.codec(cut, token) for node in ends if node is not None]
        if len(found) < 2 or found[0] is None or found[1] is None:
            return None
        return found[0], found[1]

    def tokens(self, nodes: Sequence[str], cut: str) -> list[str]:
        """Codecs that were measured at a cut on all of these nodes, in the order of the first one's profile."""
        profiles = [self.node(node) for node in nodes]
        sets = [{t.token for t in p.codecs if t.cut == cut} if p else set() for p in profiles]
        first = profiles[0].codecs if profiles and profiles[0] else ()
        return [t.token for t in first if t.cut == cut and all(t.token in known for known in sets)]

    def part_bytes(self, payload_bytes: float) -> float:
        """On the link, framing included."""
        return payload_bytes + part_framing()

    def verdict_bytes(self, num_classes: int, num_hops: int) -> int:
        return verdict_bytes(num_classes, num_hops)
