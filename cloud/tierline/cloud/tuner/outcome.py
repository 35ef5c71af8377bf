"""What thresholds make of the statistics, once per set of exits; and what was found best so far.

Shape legend: G vectors of thresholds, X exits in use with the end last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from tierline.cloud.tuner.effects import Effects
from tierline.cloud.tuner.goal import LIMITS, Goal
from tierline.cloud.tuner.pareto import Front
from tierline.cloud.tuner.space import FINE, VECTORS, all_thresholds
from tierline.cloud.tuner.statistics import Statistics
from tierline.core.errors import PlanError
from tierline.core.types import Array

T = TypeVar("T")
Vectors = Callable[[Statistics, Sequence[str], int], tuple[Array, bool]]
ROUNDING, _DIGITS = 1e-6, 6
"""A limit is met by what is beyond it by so little: means of float32 differ by that."""


@dataclass(frozen=True)
class Tried:
    """All vectors of one set of exits."""

    exits: tuple[str, ...]
    vectors_GX: Array
    share_GX: Array
    loss_G: Array
    """Quality below the whole network's."""

    def row(self, row: int) -> Tried:
        """One vector alone."""
        one = slice(row, row + 1)
        return Tried(self.exits, self.vectors_GX[one], self.share_GX[one], self.loss_G[one])


class Thresholds:
    """Remembers shares and losses, which cuts and codecs do not change."""

    def __init__(self, statistics: Statistics, effects: Effects) -> None:
        self._statistics, self._effects = statistics, effects
        self._make: Vectors = all_thresholds
        self._tried: dict[tuple[str, ...], Tried] = {}
        self._losses: dict[tuple[tuple[str, ...], ...], Array] = {}
        self.end = statistics.outcomes.exits[-1]
        self.is_complete = True
        """Whether all sets of exits so far had every different outcome among their vectors."""

    def use(self, make: Vectors | None) -> None:
        self._make = make or all_thresholds

    def of(self, exits: tuple[str, ...]) -> Tried:
        if exits not in self._tried:
            self._tried[exits], complete = self._try(exits, VECTORS)
            self.is_complete &= complete
        return self._tried[exits]

    def fine(self, exits: tuple[str, ...]) -> Tried:
        """More vectors than `of` has, where there are more outcomes."""
        return self._try(exits, FINE)[0]

    def _try(self, exits: tuple[str, ...], most: int) -> tuple[Tried, bool]:
        vectors_GX, complete = self._make(self._statistics, exits, most)
        share_GX, quality_G = self._statistics.outcome(exits, vectors_GX)
        return Tried(exits, vectors_GX, share_GX, self._statistics.quality() - quality_G), complete

    def codec_loss(self, tried: Tried, cut: str, token: str) -> Array:
        """Quality that a codec costs at each of these vectors."""
        if tried is not self._tried.get(tried.exits):
            return self._effects.loss(cut, token, tried.exits, tried.vectors_GX)
        key = (tried.exits, (cut, token))
        if key not in self._losses:
            self._losses[key] = self._effects.loss(cut, token, tried.exits, tried.vectors_GX)
        return self._losses[key]

    def computed_loss(self, tried: Tried, first: str, last: str, precision: str) -> Array:
        """Quality that a precision between two cuts costs at each of these vectors."""
        if tried is not self._tried.get(tried.exits):
            return self._effects.computed_loss(first, last, precision, tried.exits, tried.vectors_GX)
        key = (tried.exits, (first, last, precision))
        if key not in self._losses:
            self._losses[key] = self._effects.computed_loss(first, last, precision, tried.exits, tried.vectors_GX)
        return self._losses[key]

    def num_vectors(self) -> int:
        return sum(len(tried.vectors_GX) for tried in self._tried.values())


class Best(Generic[T]):
    """The front, the best choice within the limits, and for each limit how near it can be met."""

    def __init__(self, goal: Goal, front: Front[T], axes: Sequence[str]) -> None:
        self.front = front
        self._goal, self._axes, self._limits = goal, axes, goal.limits()
        self._order = tuple(dict.fromkeys((goal.minimise, *axes)))
        """What is compared, in this order, where the figure before is equal."""
        self._key: tuple[float, ...] | None = None
        self.tag: T | None = None
        self._nearest: dict[str, tuple[float, T]] = {}

    def take(self, figures: Mapping[str, Array], tag: Callable[[int], T]) -> None:
        """Consider all rows."""
        points_GD = self._points(figures)
        open_ = np.flatnonzero(~self.front.beaten(points_GD))
        self.front.add(points_GD[open_], [tag(int(row)) for row in open_])
        meets = {name: figures[name] <= limit + ROUNDING for name, limit in self._limits.items()}
        all_G = np.logical_and.reduce([np.isfinite(figures[self._axes[0]]), *meets.values()])
        rows = np.flatnonzero(all_G)
        if len(rows):
            keys = np.stack([figures[name][rows] for name in self._order])
            at = int(np.lexsort(keys[::-1])[0])
            key = tuple(float(x) for x in keys[:, at])
            if self._key is None or key < self._key:
                self._key, self.tag = key, tag(int(rows[at]))
        if self._key is None:
            self._look_near(figures, meets, tag)

    def _look_near(self, figures: Mapping[str, Array], meets: Mapping[str, Array], tag: Callable[[int], T]) -> None:
        for name in self._limits:
            others = [met for other, met in meets.items() if other != name]
            values_G = np.where(np.logical_and.reduce(others), figures[name], np.inf) if others else figures[name]
            row = int(np.argmin(values_G))
            if values_G[row] < self._nearest.get(name, (np.inf,))[0]:
                self._nearest[name] = (float(values_G[row]), tag(row))

    def is_beyond(self, ideal: Mapping[str, Array]) -> bool:
        """Whether nothing as good as this at best could change the front, the choice, or what is nearest."""
        if self._key is None:
            return False
        meets = [ideal[name] <= limit + ROUNDING for name, limit in self._limits.items()]
        better_G = ideal[self._order[0]] <= self._key[0]
        if np.logical_and.reduce([better_G, *meets]).any():
            return False
        return bool(self.front.beaten(self._points(ideal)).all())

    def _points(self, figures: Mapping[str, Array]) -> Array:
        """Rounded, so that sums of the same numbers in another order are the same point."""
        return np.round(np.stack([figures[name] for name in self._axes], axis=1), _DIGITS) + 0.0

    def chosen(self, goal: Goal, describe: Callable[[T], str]) -> T:
        """Raises PlanError naming the nearest limits that can be met."""
        if self.tag is not None:
            return self.tag
        key_of = {figure: key for key, figure in LIMITS.items()}
        asked = ", ".join(f"{key_of[name]} = {limit:g}" for name, limit in self._limits.items())
        near = [
            f"{key_of[name]} = {_up(value):g} ({describe(tag)})" for name, (value, tag) in sorted(self._nearest.items())
        ]
        one = " with the other limits kept, " if len(self._limits) > 1 else " "
        raise PlanError(
            f"goal: nothing meets {asked}; the nearest that can be met:{one}" + ("; or ".join(near) or "none of them")
        )


def _up(value: float) -> float:
    """With four digits, and not below the value: a limit that is written so is met."""
    text = float(f"{value:.4g}")
    return text if text >= value else text + 10.0 ** (np.floor(np.log10(abs(value))) - 3)
