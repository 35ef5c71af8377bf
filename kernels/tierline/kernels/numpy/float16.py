"""IEEE 754 binary16: 5 bits of exponent, 10 of fraction."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

_FRACTION = np.uint32(0x3FF)


def row_bytes(num_values: int) -> int:
    return 2 * num_values


def encode(x_BV: Floats) -> bytes:
    """Rounded to nearest, ties to even; magnitudes from 65520 become infinite; a NaN keeps its sign and upper bits and
    is quieted, as IEEE 754 says (NumPy's own cast quiets where the processor converts, and not elsewhere)."""
    with np.errstate(over="ignore", invalid="ignore"):
        code = np.ascontiguousarray(x_BV).astype("<f2").view("<u2")
    is_nan = np.isnan(x_BV)
    if is_nan.any():
        bits = x_BV[is_nan].view(np.uint32)
        code[is_nan] = bits >> np.uint32(16) & np.uint32(0x8000) | np.uint32(0x7E00) | bits >> np.uint32(13) & _FRACTION
    data: bytes = code.tobytes()
    return data


def decode(data: bytes, x_BV: Floats) -> None:
    """Every binary16 is a float32, into `x_BV`, which must be contiguous; a NaN is quieted."""
    code = np.frombuffer(data, "<u2").reshape(x_BV.shape)
    with np.errstate(invalid="ignore"):
        x_BV[...] = code.view("<f2")
    x_BV.view(np.uint32)[np.isnan(x_BV)] |= np.uint32(0x400000)
