"""`numpy.scaled.scales`, compiled, for the kernels whose rows start with a scale."""

from __future__ import annotations

from ctypes import byref, c_int

import numpy as np

from tierline.kernels.library import binder, pointer
from tierline.kernels.numpy.scaled import BAD_HEADER, BAD_VALUE, HEADER_BYTES, Floats

__all__ = ["BAD_HEADER", "BAD_VALUE", "HEADER_BYTES", "Floats", "write_at"]

_compiled = binder(
    tl_scaled_range="ppnn",
    tl_scaled_header="pppnnf",
)


def write_at(x_BV: Floats, place: int, stride: int, divisor: float) -> None:
    """Scales of contiguous rows, to addresses `stride` bytes apart: only where the library is there."""
    lib = _compiled()
    assert lib is not None
    most_B, bad = np.zeros(len(x_BV), np.int32), c_int()
    lib.tl_scaled_range(pointer(x_BV), pointer(most_B), *x_BV.shape)
    lib.tl_scaled_header(pointer(most_B), place, byref(bad), len(x_BV), stride, divisor)
    if bad:
        raise ValueError(BAD_VALUE)
