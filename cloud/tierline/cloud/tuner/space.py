"""What is searched: which cuts, sets of exits and codecs, and how finely thresholds are tried. Baselines are smaller
spaces of the same kind, so that all of them are priced alike."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tierline.cloud.tuner.ladder import Ladder
from tierline.cloud.tuner.statistics import Statistics, vectors
from tierline.core.plan import ORDER, Hierarchy
from tierline.core.types import Array, Tier

VECTORS, FINE = 400, 10_000
"""Vectors of thresholds of one set of exits, and of the chosen one at last."""


@dataclass(frozen=True)
class Space:
    """Choices of structure; thresholds follow from the statistics."""

    cuts: tuple[Mapping[Tier, str], ...]
    exits: tuple[tuple[str, ...], ...]
    """Sets of exits in use."""
    admits: Callable[[Mapping[Tier, str], Sequence[str]], bool] = field(default=lambda cuts, exits: True)
    """Which of these go together."""
    allows: Callable[[str, str], bool] = field(default=lambda cut, token: True)
    """Which codec may be used at which cut."""
    engines: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Engine and precision of nodes that have no choice of them."""
    thresholds: Callable[[Statistics, Sequence[str], int], tuple[Array, bool]] | None = None
    """Vectors of thresholds for a set of exits, about so many, and whether these are all; None: `all_thresholds`."""


def tiers_of(hierarchy: Hierarchy) -> tuple[Tier, ...]:
    """Those that have nodes, upwards; the device's always, for that is where a network begins."""
    return tuple(sorted({Tier.DEVICE, *(node.tier for node in hierarchy.nodes)}, key=lambda tier: ORDER[tier]))


def whole_space(ladder: Ladder, hierarchy: Hierarchy) -> Space:
    """Every place to cut for every tier, every set of exits, every codec."""
    names = [name for name, _ in ladder.exits]
    exits = tuple(chosen for size in range(len(names) + 1) for chosen in itertools.combinations(names, size))
    return Space(tuple(all_cuts(ladder, tiers_of(hierarchy))), exits)


def all_cuts(ladder: Ladder, tiers: Sequence[Tier]) -> Iterator[dict[Tier, str]]:
    """Every tier's end at or above the one below it, the last tier's at the output."""
    for ends in itertools.combinations_with_replacement(ladder.cuts, len(tiers) - 1):
        yield dict(zip(tiers, (*ends, ladder.cuts[-1]), strict=True))


def one_split(ladder: Ladder, tiers: Sequence[Tier]) -> Iterator[dict[Tier, str]]:
    """One cut between the device and one other tier, as two-tier methods know it."""
    for cuts in all_cuts(ladder, tiers):
        if len({*cuts.values(), ladder.cuts[-1]}) <= 2:
            yield cuts


def all_thresholds(statistics: Statistics, exits: Sequence[str], most: int) -> tuple[Array, bool]:
    """At most so many vectors of thresholds, (G, X): every combination of each exit's grid.

    True where every different outcome of the calibration split is among them.
    """
    if not exits:
        return vectors([]), True
    size = max(2, int(most ** (1 / len(exits)) + 1e-9))
    grids = [statistics.grid(name, size) for name in exits]
    complete = [statistics.grid(name, statistics.num_samples + 2) for name in exits]
    return vectors(grids), all(len(a) == len(b) for a, b in zip(grids, complete, strict=True))
