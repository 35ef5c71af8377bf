"""Classification: each row of `logits` is one score per class; the answer is the class with the highest.

Shape legend: B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from tierline.core.decide import logits_of, relative
from tierline.core.errors import ConfigError, ShapeMismatch
from tierline.core.types import Answer, Arrays, Truth


class Classification:
    """Task `classification` over the class names `labels`, in the order of the logits."""

    measure: ClassVar[str] = "accuracy"

    def __init__(self, *, labels: list[str]) -> None:
        if not labels:
            raise ConfigError("classification: the list of labels is empty")
        self._labels = tuple(labels)

    def decode(self, outputs: Arrays) -> list[Answer]:
        """The most probable class of each row with its softmax probability; the first of equals.

        Logits with NaN or +inf answer with confidence 0.0. Raises ShapeMismatch where K is not the number of labels.
        """
        logits_BK = logits_of(outputs)
        if logits_BK.shape[1] != len(self._labels):
            raise ShapeMismatch(f"logits: {logits_BK.shape[1]} classes, the Bundle names {len(self._labels)} labels")
        best_B = logits_BK.argmax(axis=1).tolist()
        confidence_B = np.fmax(1 / np.add.reduce(np.exp(relative(logits_BK)), axis=1), 0).tolist()
        return [Answer(k, self._labels[k], p) for k, p in zip(best_B, confidence_B, strict=True)]

    def quality(self, answers: Sequence[Answer], truths: Sequence[Truth]) -> float:
        """Accuracy: the share of answers whose index, or label, is the truth; 0.0 where there is nothing to judge."""
        if len(answers) != len(truths):
            raise ShapeMismatch(f"classification: {len(answers)} answers against {len(truths)} truths")
        if not answers:
            return 0.0
        right = [t == (a.label if isinstance(t, str) else a.index) for a, t in zip(answers, truths, strict=True)]
        return sum(right) / len(answers)

    def agreement(self, a: Answer, b: Answer) -> float:
        """1.0 for the same class, else 0.0."""
        return float(a.index == b.index)
