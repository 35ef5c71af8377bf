"""The upper half of float32: 8 bits of exponent, 7 of fraction."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def row_bytes(num_values: int) -> int:
    return 2 * num_values


def encode(x_BV: Floats) -> bytes:
    """The upper 16 bits after rounding to nearest, ties to even; a NaN keeps its sign and upper bits and is quieted."""
    bits = np.ascontiguousarray(x_BV).view(np.uint32)
    upper = bits >> np.uint32(16)
    rounded = (bits + (np.uint32(0x7FFF) + (upper & np.uint32(1)))) >> np.uint32(16)  # an infinity stays what it is
    data: bytes = np.where(np.isnan(x_BV), upper | np.uint32(0x40), rounded).astype("<u2").tobytes()
    return data


def decode(data: bytes, x_BV: Floats) -> None:
    """Every bfloat16 is a float32: its bits, with zeros below, into `x_BV`, which must be contiguous."""
    bits = np.frombuffer(data, "<u2").astype(np.uint32).reshape(x_BV.shape)
    np.left_shift(bits, np.uint32(16), out=x_BV.view(np.uint32))
