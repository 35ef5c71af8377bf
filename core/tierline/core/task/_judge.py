"""Quality of answers whose task nobody names: their kind says it."""

from __future__ import annotations

from collections.abc import Sequence

from tierline.core.task.classification import Classification
from tierline.core.task.detection import Detection
from tierline.core.task.regression import Regression
from tierline.core.types import Answer, Truth


def judge(answers: Sequence[Answer], truths: Sequence[Truth]) -> tuple[str, float]:
    """What is measured, and the quality. Raises DataError where truths are of another kind than the answers."""
    labels = ["?"]
    if any(answer.boxes is not None for answer in answers):
        return Detection.measure, Detection(labels=labels).quality(answers, truths)
    values = next((answer.values for answer in answers if answer.values is not None), None)
    if values is not None:
        return Regression.measure, Regression(labels=labels * len(values)).quality(answers, truths)
    return Classification.measure, Classification(labels=labels).quality(answers, truths)
