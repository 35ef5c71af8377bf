"""How logits become decisions: a stable softmax for exits and tasks, and the test by which a sample leaves.

Shape legend: B batch, K classes.
"""

from __future__ import annotations

import numpy as np

from tierline.core.errors import ShapeMismatch
from tierline.core.types import Array, Arrays

_FLOOR = np.float32(-80)
"""exp(-80) is 2e-35: nothing beside the largest class (1.0), and still a normal float32."""


def leaves(score_B: Array, threshold: float) -> Array:
    """Which samples leave: bool[B]. All at `threshold` >= 1 (even a score of 1), else those with score < threshold."""
    if threshold >= 1:
        return np.ones(score_B.shape, np.bool_)
    decided: Array = score_B < threshold
    return decided


def logits_of(outputs: Arrays) -> Array:
    """The output named `logits` as contiguous float32 (B, K), K >= 1. Raises ShapeMismatch."""
    logits = outputs.get("logits")
    if logits is None:
        raise ShapeMismatch(f"no output named 'logits' among {sorted(outputs)}")
    if logits.ndim != 2 or logits.shape[1] == 0 or logits.dtype.kind != "f":
        raise ShapeMismatch(
            f"logits: expected floats of shape (batch, classes), got {logits.dtype}{list(logits.shape)}"
        )
    return np.ascontiguousarray(logits, np.float32)


def relative(logits_BK: Array) -> Array:
    """`logits - max(logits)` per row, in [-80, 0]; softmax is `exp(relative) / sum(exp(relative))`.

    A row is NaN throughout its sum when it holds NaN, +inf, or nothing but -inf: it says nothing about the classes.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        shifted: Array = logits_BK - np.maximum.reduce(logits_BK, axis=1, keepdims=True)
    np.maximum(shifted, _FLOOR, out=shifted)
    return shifted


def bounded(score_B: Array) -> Array:
    """Clipped to [0, 1] against rounding; NaN becomes 1.0, so that a sample with broken logits never looks certain."""
    clipped: Array = np.fmin(np.maximum(score_B, np.float32(0)), np.float32(1))
    return clipped
