"""A made world for the Tuner: a chain of four pieces, two exits, and times, sizes and links that are set by hand."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from tierline.cloud.tuner.effects import Effects
from tierline.cloud.tuner.goal import Goal
from tierline.cloud.tuner.job import Job
from tierline.cloud.tuner.ladder import Ladder
from tierline.cloud.tuner.statistics import Statistics
from tierline.core.candidates import Outcomes
from tierline.core.plan import Hierarchy, HierarchyNode
from tierline.core.profile import SCHEMA, CodecTime, HeadTime, LinkTime, NodeProfile, Profile, SectionTime
from tierline.core.types import Tier

LADDER = Ladder(("input", "a", "b", "c", "output"), (("early", "a"), ("late", "c")))
PIECES = {("input", "a"): 4.0, ("a", "b"): 6.0, ("b", "c"): 8.0, ("c", "output"): 2.0}
"""Milliseconds on a device."""
BYTES = {"input": 3000.0, "a": 8000.0, "b": 2000.0, "c": 500.0}
TWO = Hierarchy((HierarchyNode("cloud", Tier.CLOUD), HierarchyNode("dev", Tier.DEVICE, "cloud", ("v",))))
THREE = Hierarchy(
    (
        HierarchyNode("cloud", Tier.CLOUD),
        HierarchyNode("edge", Tier.EDGE, "cloud"),
        HierarchyNode("dev", Tier.DEVICE, "edge", ("v",)),
    )
)
FAST = {Tier.DEVICE: 8.0, Tier.EDGE: 0.2, Tier.CLOUD: 0.05}


def outcomes(num: int = 60, seed: int = 0) -> Outcomes:
    """Later exits are right more often, and surer; scores of one sample go together."""
    rng = np.random.default_rng(seed)
    hard_S = rng.random(num)
    right_ES = np.stack([hard_S <= 0.75 + 0.1 * e + 0.05 * rng.random(num) for e in range(3)])
    score_ES = np.stack([np.clip(hard_S * (1 - 0.2 * e) + 0.1 * rng.random(num), 0, 0.99) for e in range(3)])
    truth_S = rng.integers(0, 3, num)
    images = np.zeros((1, 4, 4), np.uint8)
    quality_ES = right_ES.astype(np.float32)
    agreement_ES = (right_ES == right_ES[-1]).astype(np.float32)
    return Outcomes(("early", "late", "final"), score_ES.astype(np.float32), quality_ES, agreement_ES, truth_S, images)


def statistics(num: int = 60, seed: int = 0) -> Statistics:
    return Statistics(outcomes(num, seed))


def node(
    name: str,
    tier: Tier,
    *,
    codecs: tuple[str, ...] = ("raw", "affine:4"),
    engines: int = 1,
    precisions: tuple[str, ...] = ("float32",),
) -> NodeProfile:
    """Pieces one by one, in batches of 1, 4 and 16; `engines` 2: another one, faster only in the pieces above b. Each
    of `precisions` takes 0.6 of the time of the one before."""
    names = ["onnxruntime", "other"][:engines]

    def ns(first: str, ms: float, engine: str, batch: int, precision: str) -> int:
        faster = (0.5 if first in ("b", "c") else 1.5) if engine == "other" else 1.0
        lower = 0.6 ** precisions.index(precision)
        return round(ms * FAST[tier] * faster * lower * (0.7 + 0.3 * batch) * 1e6)

    sections = tuple(
        SectionTime(a, b, engine, precision, batch, ns(a, ms, engine, batch, precision), round(0.05e6), 20)
        for (a, b), ms in PIECES.items()
        for engine in names
        for precision in precisions
        for batch in (1, 4, 16)
    )
    heads = tuple(
        HeadTime(exit_, engine, precision, batch, ns("input", 0.5, engine, batch, precision), 0, 20)
        for exit_ in ("early", "late")
        for engine in names
        for precision in precisions
        for batch in (1, 4, 16)
    )
    coded = tuple(
        CodecTime(cut, token, round(0.1e6 * (1 + at)), round(0.05e6 * (1 + at)), size / (1 + 7 * at), 9000, 8)
        for cut, size in BYTES.items()
        for at, token in enumerate(codecs)
    )
    return NodeProfile(name, tier, "2026-01-01T00:00:00Z", {}, sections, heads, coded)


def profile(hierarchy: Hierarchy, mbit: float = 5.85, rtt_ms: float = 50.0, **more: object) -> Profile:
    return Profile(
        SCHEMA,
        "bundle-digest",
        {n.id: node(n.id, n.tier, **more) for n in hierarchy.nodes},  # type: ignore[arg-type]
        {n.id: LinkTime(n.id, rtt_ms, mbit * 1e6, mbit * 1e6, 1.0) for n in hierarchy.nodes if n.parent},
    )


def effects(found: Statistics, tokens: tuple[str, ...] = ("affine:4",), precisions: tuple[str, ...] = ()) -> Effects:
    """The lossy codecs turn a few answers of the exits above their cut; precisions below float32 some of those that
    come from the range or from above it, and more the longer the range."""
    whole = found.outcomes
    few = slice(0, 40)
    plain = replace(
        whole,
        score_ES=whole.score_ES[:, few],
        quality_ES=whole.quality_ES[:, few],
        agreement_ES=whole.agreement_ES[:, few],
        truth_S=whole.truth_S[few],
    )
    coded = {}
    for at, cut in enumerate(BYTES):
        for nth, token in enumerate(tokens):
            quality_ES = plain.quality_ES.copy()
            quality_ES[1 if at < 3 else 2 :, nth :: 13 + at] = 0
            coded[cut, token] = Statistics(replace(plain, quality_ES=quality_ES))
    computed = {}
    for a, b in itertools.combinations(range(len(LADDER.cuts)), 2):
        for nth, precision in enumerate(precisions):
            quality_ES = plain.quality_ES.copy()
            row = sum(LADDER.at(cut) <= a for _, cut in LADDER.exits)
            quality_ES[row:, nth :: 11 - 2 * (b - a)] = 0
            computed[LADDER.cuts[a], LADDER.cuts[b], precision] = Statistics(replace(plain, quality_ES=quality_ES))
    return Effects(Statistics(plain), coded, frozenset((cut, "raw") for cut in BYTES), computed)


class MadeJob(Job):
    """Of a Bundle that is none: tests put `outcomes` in place of what would be read from it."""

    @property
    def ladder(self) -> Ladder:
        return LADDER


def job(hierarchy: Hierarchy, goal: Goal, found: Statistics, **more: Any) -> Job:
    bundle: Any = SimpleNamespace(manifest=SimpleNamespace(labels=["a", "b", "c"]))
    return MadeJob(bundle, profile(hierarchy, **more), hierarchy, goal, effects(found))
