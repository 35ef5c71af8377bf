"""Quality of answers whose task nobody names: their kind says it."""

from __future__ import annotations

from collections.abc import Sequence

from tierline.core.task.classification import Classification
from tierline.core.task.detection import Detection
from tierline.core.task.regression import Regression
from tierline.core.types import Answer, Box, Truth


def judge(answers: Sequence[Answer], truths: Sequence[Truth | None]) -> tuple[str, float] | None:
    """What is measured, and the quality of the answers whose truth is known and of their kind; None where none is."""
    has_boxes = any(answer.boxes is not None for answer in answers)
    num_values = next((len(answer.values) for answer in answers if answer.values is not None), 0)
    known = [
        (answer, truth)
        for answer, truth in zip(answers, truths, strict=True)
        if truth is not None and _fits(truth, has_boxes, num_values)
    ]
    if not known:
        return None
    judged, facts = [answer for answer, _ in known], [truth for _, truth in known]
    if has_boxes:
        return Detection.measure, Detection(labels=["?"]).quality(judged, facts)
    if num_values:
        return Regression.measure, Regression(labels=["?"] * num_values).quality(judged, facts)
    return Classification.measure, Classification(labels=["?"]).quality(judged, facts)


def _fits(truth: Truth, has_boxes: bool, num_values: int) -> bool:
    if not isinstance(truth, tuple):
        return not has_boxes and not num_values
    is_boxes = all(isinstance(x, Box) for x in truth)
    return is_boxes if has_boxes else len(truth) == num_values > 0 and not is_boxes
