"""Detection: the objects of an image. `logits` (B, M, 6) are candidates as `core.boxes` describes them.

Quality is F1 over all objects at IoU 0.5 (Everingham et al., "The PASCAL visual object classes (VOC) challenge", IJCV
2010, section 4.2, states when a box is right; F1 instead of average precision, since nodes answer with boxes, not with
every candidate down to a score of 0). Truths are boxes; their confidence does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from tierline.core.boxes import CLASS, SCORE, candidates_of, kept, num_matches
from tierline.core.errors import ConfigError, DataError, ShapeMismatch
from tierline.core.types import Answer, Array, Arrays, Box, Truth

MIN_SCORE = 0.25
"""A candidate below is no object."""


class Detection:
    """Task `detection` over the class names `labels`, in the order of the class indices."""

    measure: ClassVar[str] = "f1_iou50"

    def __init__(self, *, labels: list[str]) -> None:
        if not labels:
            raise ConfigError("detection: the list of labels is empty")
        self._labels = tuple(labels)

    def decode(self, outputs: Arrays) -> list[Answer]:
        """The objects of each row; index -1 and confidence 0.0 where there are none.

        Raises ShapeMismatch for other shapes, and for a class without a label.
        """
        return [self._answer(kept(rows_M6, MIN_SCORE)) for rows_M6 in candidates_of(outputs)]

    def quality(self, answers: Sequence[Answer], truths: Sequence[Truth]) -> float:
        """2 TP / (boxes answered + objects), over all images; 1.0 where there is neither."""
        if len(answers) != len(truths):
            raise ShapeMismatch(f"detection: {len(answers)} answers against {len(truths)} truths")
        pairs = [(answer.boxes or (), _objects(truth)) for answer, truth in zip(answers, truths, strict=True)]
        return _f1(
            sum(num_matches(*pair) for pair in pairs), sum(len(found) + len(objects) for found, objects in pairs)
        )

    def agreement(self, a: Answer, b: Answer) -> float:
        """F1 of the boxes of one against those of the other: 1.0 where both have the same, or none."""
        ours, theirs = a.boxes or (), b.boxes or ()
        return _f1(num_matches(ours, theirs), len(ours) + len(theirs))

    def _answer(self, rows_N6: Array) -> Answer:
        boxes = tuple(self._box(row) for row in rows_N6.tolist())
        if not boxes:
            return Answer(-1, "", 0.0, boxes=())
        return Answer(boxes[0].index, boxes[0].label, boxes[0].confidence, boxes=boxes)

    def _box(self, row: list[float]) -> Box:
        index = int(row[CLASS])
        if not 0 <= index < len(self._labels):
            raise ShapeMismatch(f"logits: a box of class {index}, the Bundle names {len(self._labels)} labels")
        return Box(index, self._labels[index], row[SCORE], (row[0], row[1], row[2], row[3]))


def _f1(num_right: int, num_boxes: int) -> float:
    return 2 * num_right / num_boxes if num_boxes else 1.0


def _objects(truth: Truth) -> tuple[Box, ...]:
    if isinstance(truth, tuple) and all(isinstance(box, Box) for box in truth):
        return truth  # type: ignore[return-value]
    raise DataError(f"detection: a truth is the boxes of an image, not {truth!r}")
