"""The codecs' arithmetic in NumPy: the readable oracle of the compiled kernels, and their fallback.

Every row of a batch is coded on its own, with IEEE float32 operations in the order written here (no contracted
multiply-adds, order-free reductions), so other implementations can match these bytes exactly. Words are little-endian.

Shape legend: B batch, V values in one row, P bytes of a packed row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

HEADER_BYTES = 8
"""Of an affine row: float32 lo, float32 scale."""

_ONE = np.float32(1)
_LEVELS = np.float32(255)
_TINY = np.finfo(np.float32).tiny
_LIMIT = np.float32(2.0**126)
_MAX_SCALE = np.float32(2.0**127 / 254)
_SIGNS = np.array([-1, 1], np.float32)


def affine_encode(x_BV: Floats) -> Bytes:
    """8-bit quantisation between each row's minimum and maximum: uint8[B, 8 + V].

    `scale = max((max - min) / 255, 2^-126)`, `code = rint((x - min) * (1 / scale))`, ties to even. A row is written as
    lo = min, scale, codes. The floor under the scale (the smallest normal number) makes constant rows nothing special.
    Raises ValueError for NaN and for magnitudes above 2^126, infinities included: no step can overflow below that.
    """
    num_rows, num_values = x_BV.shape
    if x_BV.size == 0:
        return np.zeros((num_rows, HEADER_BYTES + num_values), np.uint8)
    lo_B = np.minimum.reduce(x_BV, axis=1)
    hi_B = np.maximum.reduce(x_BV, axis=1)
    if not (np.minimum.reduce(lo_B) >= -_LIMIT and np.maximum.reduce(hi_B) <= _LIMIT):  # NaN fails both
        raise ValueError("a value is NaN, infinite or above 2^126 in magnitude")
    scale_B = np.maximum((hi_B - lo_B) / _LEVELS, _TINY)
    step_BV = x_BV - lo_B[:, None]
    step_BV *= (_ONE / scale_B)[:, None]
    coded_BP = np.empty((num_rows, HEADER_BYTES + num_values), np.uint8)
    header_B2 = coded_BP[:, :HEADER_BYTES].view("<f4")
    header_B2[:, 0] = lo_B
    header_B2[:, 1] = scale_B
    coded_BP[:, HEADER_BYTES:] = np.rint(step_BV, out=step_BV)
    return coded_BP


def affine_decode(coded_BP: Bytes) -> Floats:
    """`code * scale + lo` of each row: float32[B, V]. Raises ValueError for a header that no encoder writes."""
    if coded_BP.size == 0 or coded_BP.shape[1] == HEADER_BYTES:
        return np.zeros((len(coded_BP), coded_BP.shape[1] - HEADER_BYTES), np.float32)
    header_B2 = coded_BP[:, :HEADER_BYTES].view("<f4")
    least_lo, least_scale = np.minimum.reduce(header_B2, axis=0).tolist()
    most_lo, most_scale = np.maximum.reduce(header_B2, axis=0).tolist()
    if not (least_lo >= -_LIMIT and most_lo <= _LIMIT and least_scale >= _TINY and most_scale <= _MAX_SCALE):
        raise ValueError("a row's header holds no lo and scale that an encoder writes")
    x_BV: Floats = coded_BP[:, HEADER_BYTES:] * header_B2[:, 1:]
    x_BV += header_B2[:, :1]
    return x_BV


def bitplane_encode(x_BV: npt.NDArray[Any]) -> Bytes:
    """One bit per value, 1 where x >= 0: uint8[B, ceil(V / 8)].

    The first value is the most significant bit; padding bits are 0.
    """
    return np.packbits(x_BV >= 0, axis=1)


def bitplane_decode(packed_BP: Bytes, num_values: int) -> Floats:
    """+1.0 for a set bit and -1.0 for a clear one: float32[B, V]. Raises ValueError for a set padding bit."""
    num_padding = -num_values % 8
    if num_padding and np.bitwise_and(packed_BP[:, -1], (1 << num_padding) - 1).any():
        raise ValueError("padding bits are set")
    return _SIGNS.take(np.unpackbits(packed_BP, axis=1, count=num_values))
