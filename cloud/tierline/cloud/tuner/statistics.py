"""What thresholds make of the outcomes of a Bundle's exits: who leaves where, and with what quality.

Outcomes are joint: scores of one sample belong together, for exits do not err independently (`core.candidates`).

Shape legend: E exits from the sensor upwards, the network's own end last; S samples; G vectors of thresholds; X exits
in use, with the end last where shares are told.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from tierline.core.candidates import Outcomes
from tierline.core.decide import leaves
from tierline.core.types import Array

_AT_ONCE = 512
"""Vectors of thresholds that are tried together, for memory."""


class Statistics:
    """Outcomes as the Tuner asks them."""

    def __init__(self, outcomes: Outcomes) -> None:
        self.outcomes = outcomes
        self.has_truth = bool(np.isfinite(outcomes.quality_ES).all())
        """Else quality is agreement with the whole network."""
        self._quality_ES = outcomes.quality_ES if self.has_truth else outcomes.agreement_ES

    @property
    def exits(self) -> tuple[str, ...]:
        """Without the end."""
        return self.outcomes.exits[:-1]

    @property
    def num_samples(self) -> int:
        return int(self.outcomes.score_ES.shape[1])

    def quality(self) -> float:
        """Of the whole network alone."""
        return float(self._quality_ES[-1].mean())

    def grid(self, exit_: str, size: int) -> list[float]:
        """At most `size` thresholds: every different outcome where these suffice, else evenly spaced shares of samples.

        The last one is 1, at which everything leaves; none lets nobody leave, for that is the network without the exit.
        """
        sorted_S = np.sort(self.outcomes.score_ES[self.outcomes.of(exit_)])
        score_S = np.unique(sorted_S)[1:]  # below the smallest nobody leaves
        if len(score_S) > size - 1:
            at = np.round(np.linspace(0, 1, size + 1)[1:-1] * (len(sorted_S) - 1)).astype(np.int64)
            score_S = np.setdiff1d(sorted_S[at], sorted_S[:1])
        return [*(float(score) for score in score_S if score < 1), 1.0]

    def leaving(self, exits: Sequence[str], thresholds_GX: Array) -> Array:
        """Where each sample leaves, (G, S) int8: position in `exits`, or their number for the end."""
        where_GS = np.full((len(thresholds_GX), self.num_samples), len(exits), np.int8)
        for position in reversed(range(len(exits))):
            score_S = self.outcomes.score_ES[self.outcomes.of(exits[position])]
            for row, threshold in enumerate(thresholds_GX[:, position]):
                where_GS[row, leaves(score_S, float(threshold))] = position
        return where_GS

    def outcome(self, exits: Sequence[str], thresholds_GX: Array) -> tuple[Array, Array]:
        """Shares of samples that leave at each exit in use, (G, X) with the end last, and the quality, (G,)."""
        share_GX = np.empty((len(thresholds_GX), len(exits) + 1))
        quality_G = np.zeros(len(thresholds_GX))
        rows = [*(self.outcomes.of(name) for name in exits), -1]
        for start in range(0, len(thresholds_GX), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            where_GS = self.leaving(exits, thresholds_GX[some])
            for position, row in enumerate(rows):
                here_GS = where_GS == position
                share_GX[some, position] = here_GS.mean(axis=1)
                quality_G[some] += here_GS @ self._quality_ES[row].astype(np.float64) / self.num_samples
        return share_GX, quality_G


def vectors(grids: Sequence[Sequence[float]]) -> Array:
    """Every combination of one threshold per exit, (G, X); one row without columns for no exit."""
    rows = list(itertools.product(*grids))
    return np.array(rows, np.float64).reshape(len(rows), len(grids))
