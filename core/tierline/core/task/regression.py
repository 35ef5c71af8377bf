"""Regression: D numbers for each row, called by the labels.

`logits` are the D values (B, D), or values and the natural logarithms of their variances (B, 2 D), as a network gives
them that was trained by the Gaussian likelihood (Nix, Weigend, "Estimating the mean and variance of the target
probability distribution", ICNN 1994). Only the second kind knows how sure it is, and can leave at an early exit.

Quality is the coefficient of determination R^2 = 1 - sum (y - f)^2 / sum (y - mean y)^2, the mean over the D values,
each at least 0. Deviation: 1.0 where a value neither varies nor is missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from tierline.core.decide import logits_of
from tierline.core.errors import ConfigError, DataError, ShapeMismatch
from tierline.core.types import Answer, Array, Arrays, Truth


class Regression:
    """Task `regression`; `labels` name the values."""

    measure: ClassVar[str] = "r2"

    def __init__(self, *, labels: list[str]) -> None:
        if not labels:
            raise ConfigError("regression: the list of labels is empty; it names the values")
        self._labels = tuple(labels)

    def decode(self, outputs: Arrays) -> list[Answer]:
        """Values by row. Confidence is 1 / (1 + their mean standard deviation), 0.0 where no variance is known.

        Raises ShapeMismatch where there are neither D nor 2 D columns.
        """
        logits_B, num = logits_of(outputs), len(self._labels)
        if logits_B.shape[1] not in (num, 2 * num):
            raise ShapeMismatch(f"logits: {logits_B.shape[1]} values, the Bundle names {num} labels")
        with np.errstate(over="ignore"):
            deviation_B = np.exp(logits_B[:, num:] / 2).mean(axis=1) if logits_B.shape[1] > num else None
        sure_B = np.zeros(len(logits_B)) if deviation_B is None else 1 / (1 + deviation_B)
        return [
            Answer(0, self._text(row), float(sure), values=tuple(row))
            for row, sure in zip(logits_B[:, :num].tolist(), np.nan_to_num(sure_B), strict=True)
        ]

    def quality(self, answers: Sequence[Answer], truths: Sequence[Truth]) -> float:
        """R^2; an answer without values counts as the mean truth."""
        if len(answers) != len(truths):
            raise ShapeMismatch(f"regression: {len(answers)} answers against {len(truths)} truths")
        if not answers:
            return 0.0
        truth_SD = self._table(truths)
        mean_D = truth_SD.mean(axis=0)
        found_SD = np.array([mean_D if answer.values is None else answer.values for answer in answers])
        missed_D, spread_D = ((found_SD - truth_SD) ** 2).sum(axis=0), ((truth_SD - mean_D) ** 2).sum(axis=0)
        explained_D = 1 - np.divide(missed_D, spread_D, out=(missed_D > 0).astype(float), where=spread_D > 0)
        return float(np.nan_to_num(np.clip(explained_D, 0, 1)).mean())

    def agreement(self, a: Answer, b: Answer) -> float:
        """1 - |a - b| / (|a| + |b|), the mean over the values; 1.0 where both are 0."""
        if a.values is None or b.values is None:
            return float(a.values == b.values)
        ours, theirs = np.array(a.values), np.array(b.values)
        size_D = np.abs(ours) + np.abs(theirs)
        apart_D = np.divide(np.abs(ours - theirs), size_D, out=np.zeros_like(size_D), where=size_D > 0)
        return float(np.nan_to_num(1 - apart_D).mean())

    def _text(self, row: list[float]) -> str:
        if len(row) == 1:
            return f"{row[0]:.4g}"
        return ", ".join(f"{name} {value:.4g}" for name, value in zip(self._labels, row, strict=True))

    def _table(self, truths: Sequence[Truth]) -> Array:
        try:
            table = np.array(truths, np.float64)
        except (TypeError, ValueError):
            table = np.empty(0)
        if table.shape != (len(truths), len(self._labels)):
            raise DataError(f"regression: a truth is {len(self._labels)} numbers for each image")
        return table
