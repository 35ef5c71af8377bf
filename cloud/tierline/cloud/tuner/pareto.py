"""A Pareto front: the points that no other point beats in every figure at once.

Shape legend: P points, F points on the front, D figures, all of them better when smaller.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import numpy as np

from tierline.core.types import Array

T = TypeVar("T")
_AT_ONCE = 256


class Front(Generic[T]):
    """Grows by points with a tag each; of equal points the first one stays."""

    def __init__(self, num_figures: int) -> None:
        self.points_FD = np.empty((0, num_figures))
        self.tags: list[T] = []

    def beaten(self, points_PD: Array) -> Array:
        """Which points are no better in any figure than one on the front: bool (P,)."""
        found = np.zeros(len(points_PD), np.bool_)
        for start in range(0, len(self.points_FD), _AT_ONCE):
            open_ = np.flatnonzero(~found)
            if not len(open_):
                break
            some_FD = self.points_FD[start : start + _AT_ONCE]
            found[open_] = _beats(some_FD[np.newaxis], points_PD[open_, np.newaxis])
        return found

    def add(self, points_PD: Array, tags: list[T]) -> None:
        """Take in what belongs on the front; what it beats goes."""
        keep = np.flatnonzero(~self.beaten(points_PD) & np.isfinite(points_PD).all(axis=1))
        keep = keep[np.lexsort(points_PD[keep].T[::-1])]
        fresh: list[int] = []
        for index in keep:  # in order of the first figure, so that nothing later beats what was kept
            kept_PD = points_PD[fresh]
            if not (kept_PD <= points_PD[index]).all(axis=1).any():
                fresh.append(int(index))
        if not fresh:
            return
        new_PD = points_PD[fresh]
        beaten_F = _beats(new_PD[np.newaxis], self.points_FD[:, np.newaxis])
        self.points_FD = np.concatenate([self.points_FD[~beaten_F], new_PD])
        old = [tag for tag, gone in zip(self.tags, beaten_F, strict=True) if not gone]
        self.tags = [*old, *(tags[index] for index in fresh)]


class NoFront(Front[T]):
    """Stays empty, for a search that is after the chosen point alone: any point is beaten as far as it is concerned."""

    def beaten(self, points_PD: Array) -> Array:
        return np.ones(len(points_PD), np.bool_)


def _beats(a: Array, b: Array) -> Array:
    """For arrays that broadcast to (P, F, D): whether any of F is no worse than P in all figures, (P,)."""
    no_worse: Array = np.asarray(np.logical_and.reduce(np.less_equal(a, b), axis=2))
    return np.asarray(np.logical_or.reduce(no_worse, axis=1))
