"""Values on an even scale between the minimum and maximum of their row, 1 to 8 bits each."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

HEADER_BYTES = 8
"""Of a row: float32 lo, float32 scale."""
LIMIT = 2.0**126
"""Largest magnitude that is coded: no step can overflow below it."""

_ONE = np.float32(1)
_TINY = np.finfo(np.float32).tiny


def row_bytes(num_values: int, bits: int) -> int:
    return HEADER_BYTES + (num_values * bits + 7) // 8


def encode(x_BV: Floats, bits: int = 8) -> bytes:
    """Rows of lo, scale and packed codes.

    `scale = max((max - min) / (2^bits - 1), 2^-126)`, `code = rint((x - min) * (1 / scale))`, ties to even. The floor
    under the scale (the smallest normal number) makes constant rows nothing special. A zero minimum is written as +0.
    Raises ValueError for NaN and for magnitudes above 2^126, infinities included.
    """
    num_rows, num_values = x_BV.shape
    if x_BV.size == 0:
        return bytes(num_rows * HEADER_BYTES)
    lo_B = np.minimum.reduce(x_BV, axis=1) + np.float32(0)
    hi_B = np.maximum.reduce(x_BV, axis=1)
    if not (np.minimum.reduce(lo_B) >= -LIMIT and np.maximum.reduce(hi_B) <= LIMIT):  # NaN fails both
        raise ValueError("a value is NaN, infinite or above 2^126 in magnitude")
    scale_B = np.maximum((hi_B - lo_B) / np.float32(2**bits - 1), _TINY)
    step_BV = x_BV - lo_B[:, None]
    step_BV *= (_ONE / scale_B)[:, None]
    code_BV = np.rint(step_BV, out=step_BV).astype(np.uint8)
    coded_BP = np.empty((num_rows, row_bytes(num_values, bits)), np.uint8)
    header_B2 = coded_BP[:, :HEADER_BYTES].view("<f4")
    header_B2[:, 0] = lo_B
    header_B2[:, 1] = scale_B
    coded_BP[:, HEADER_BYTES:] = pack(code_BV, bits)
    return coded_BP.tobytes()


def decode(data: bytes, x_BV: Floats, bits: int = 8) -> None:
    """`code * scale + lo` of each row, into `x_BV`.

    Raises ValueError for a header that no encoder writes, and for padding bits that are set.
    """
    num_rows, num_values = x_BV.shape
    if x_BV.size == 0:
        return
    coded_BP = np.frombuffer(data, np.uint8).reshape(num_rows, row_bytes(num_values, bits))
    header_B2 = coded_BP[:, :HEADER_BYTES].view("<f4")
    least_lo, least_scale = np.minimum.reduce(header_B2, axis=0).tolist()
    most_lo, most_scale = np.maximum.reduce(header_B2, axis=0).tolist()
    if not (least_lo >= -LIMIT and most_lo <= LIMIT and least_scale >= _TINY and most_scale <= max_scale(bits)):
        raise ValueError("a row's header holds no lo and scale that an encoder writes")
    np.multiply(unpack(coded_BP[:, HEADER_BYTES:], num_values, bits), header_B2[:, 1:], out=x_BV)
    x_BV += header_B2[:, :1]


def max_scale(bits: int) -> float:
    """No encoder writes a larger one: the widest range over the steps, with room for its rounding."""
    return 2 * LIMIT / max((1 << bits) - 2, 1)


def pack(code_BV: Bytes, bits: int) -> Bytes:
    """Codes as one stream of bits, value i in bits i*bits and up, least significant first; padding bits are 0."""
    if bits == 8:
        return code_BV
    bit_BVb = np.unpackbits(code_BV[:, :, None], axis=2, count=bits, bitorder="little")
    return np.packbits(bit_BVb.reshape(len(code_BV), -1), axis=1, bitorder="little")


def unpack(packed_BP: Bytes, num_values: int, bits: int) -> Bytes:
    """Undo `pack`. Raises ValueError for set padding bits."""
    if bits == 8:
        return packed_BP
    bit_BX = np.unpackbits(packed_BP, axis=1, bitorder="little")
    if bit_BX[:, num_values * bits :].any():
        raise ValueError("padding bits are set")
    bit_BVb = bit_BX[:, : num_values * bits].reshape(len(packed_BP), num_values, bits)
    return np.packbits(bit_BVb, axis=2, bitorder="little")[:, :, 0]
