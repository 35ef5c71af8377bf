"""The mask of parts that arrived, checked once for all aggregators."""

from __future__ import annotations

from tierline.core.errors import ShapeMismatch
from tierline.core.types import Array


def all_present(parts_NB: Array, present_NB: Array, what: str) -> bool:
    """True where no part is absent and there is at least one. Raises ShapeMismatch for arrays that do not fit."""
    if parts_NB.ndim < 2 or parts_NB.dtype.kind != "f":
        raise ShapeMismatch(f"{what}: expected float parts (N, B, ...), got {parts_NB.dtype}{list(parts_NB.shape)}")
    if present_NB.shape != parts_NB.shape[:2] or present_NB.dtype.kind != "b":
        raise ShapeMismatch(
            f"{what}: expected a bool mask {list(parts_NB.shape[:2])}, got {present_NB.dtype}{list(present_NB.shape)}"
        )
    return len(parts_NB) > 0 and bool(present_NB.all())


def spread(present_NB: Array, parts_NB: Array) -> Array:
    """The mask with trailing axes of length 1, ready to broadcast against the parts."""
    return present_NB.reshape(present_NB.shape + (1,) * (parts_NB.ndim - 2))
