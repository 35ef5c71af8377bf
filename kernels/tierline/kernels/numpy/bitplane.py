"""One bit per value: its sign."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

_SIGNS = np.array([-1, 1], np.float32)


def row_bytes(num_values: int) -> int:
    return (num_values + 7) // 8


def encode(x_BV: Floats) -> bytes:
    """1 where x >= 0, the first value in the most significant bit, padding bits 0. Raises ValueError for NaN."""
    least = np.minimum.reduce(x_BV, axis=None, initial=np.inf)  # NaN wins every minimum
    if least != least:
        raise ValueError("a value is NaN, which has no sign")
    return np.packbits(x_BV >= 0, axis=1).tobytes()


def decode(data: bytes, x_BV: Floats) -> None:
    """+1.0 for a set bit and -1.0 for a clear one, into `x_BV`. Raises ValueError for a set padding bit."""
    num_rows, num_values = x_BV.shape
    packed_BP = np.frombuffer(data, np.uint8).reshape(num_rows, row_bytes(num_values))
    num_padding = -num_values % 8
    if num_padding and np.bitwise_and(packed_BP[:, -1], (1 << num_padding) - 1).any():
        raise ValueError("padding bits are set")
    _SIGNS.take(np.unpackbits(packed_BP, axis=1, count=num_values), out=x_BV)
