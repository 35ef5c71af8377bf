"""Candidate boxes of a detector, as exits and tasks read them: overlap, suppression of doubles, matching with truth.

A detector's exit gives `logits` float32 (B, M, 6): M candidates of each image, as left, top, right, bottom (shares of
the image's width and height), a score in [0, 1] and the index of its class. Every model gives the same M, whatever
its grid, so that two of them can answer for each other.

Shape legend: B batch, M candidates, N boxes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tierline.core.errors import ShapeMismatch
from tierline.core.types import Array, Arrays, Box

COLUMNS = 6
SCORE, CLASS = 4, 5
MAX_OVERLAP = 0.5
"""Of two boxes of one class with a larger IoU, the less confident one is a double."""
MIN_IOU = 0.5
"""From here on two boxes mean the same object (PASCAL VOC's measure)."""


def candidates_of(outputs: Arrays) -> Array:
    """The output named `logits` as float32 (B, M, 6). Raises ShapeMismatch."""
    logits = outputs.get("logits")
    if logits is None:
        raise ShapeMismatch(f"no output named 'logits' among {sorted(outputs)}")
    if logits.ndim != 3 or logits.shape[2] != COLUMNS or logits.dtype.kind != "f":
        raise ShapeMismatch(
            f"logits: expected floats of shape (batch, candidates, {COLUMNS}), got {logits.dtype}{list(logits.shape)}"
        )
    return np.ascontiguousarray(logits, np.float32)


def iou(corners_N4: Array, others_M4: Array) -> Array:
    """Intersection over union of every pair, float32 (N, M); 0 where both are empty."""
    least = np.maximum(corners_N4[:, None, :2], others_M4[None, :, :2])
    most = np.minimum(corners_N4[:, None, 2:], others_M4[None, :, 2:])
    shared_NM = np.maximum(most - least, 0).prod(axis=2)
    area_N, area_M = (np.maximum(x[:, 2:] - x[:, :2], 0).prod(axis=1) for x in (corners_N4, others_M4))
    union_NM = area_N[:, None] + area_M[None] - shared_NM
    share: Array = np.divide(shared_NM, union_NM, out=np.zeros_like(shared_NM), where=union_NM > 0)
    return share


def kept(rows_M6: Array, min_score: float) -> Array:
    """The candidates of one image from `min_score` on, without doubles, the best first: float32 (N, 6).

    Greedy non-maximum suppression within each class. A candidate that is not finite does not count.
    """
    rows = rows_M6[np.isfinite(rows_M6).all(axis=1) & (rows_M6[:, SCORE] >= min_score)]
    rows = rows[np.argsort(-rows[:, SCORE], kind="stable")]
    double_NN = (iou(rows[:, :4], rows[:, :4]) > MAX_OVERLAP) & (rows[:, None, CLASS] == rows[None, :, CLASS])
    alive = np.ones(len(rows), np.bool_)
    for index in range(len(rows)):
        if alive[index]:
            alive[index + 1 :] &= ~double_NN[index, index + 1 :]
    found: Array = rows[alive]
    return found


def num_matches(found: Sequence[Box], truth: Sequence[Box]) -> int:
    """Boxes of `found` that mean an object of `truth`, each object once; the most confident box chooses first."""
    if not found or not truth:
        return 0
    share = iou(np.array([box.corners for box in found]), np.array([box.corners for box in truth]))
    share[np.array([box.index for box in found])[:, None] != np.array([box.index for box in truth])[None]] = 0.0
    num = 0
    for row in np.argsort([-box.confidence for box in found], kind="stable"):
        best = int(share[row].argmax())
        if share[row, best] >= MIN_IOU:
            share[:, best] = 0.0
            num += 1
    return num
