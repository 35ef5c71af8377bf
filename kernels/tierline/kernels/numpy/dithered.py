"""Subtractive dither: a uniform step of quantisation whose error does not depend on what is coded."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tierline.kernels.numpy import philox, radix, scaled

Floats = npt.NDArray[np.float32]

MAX_LEVELS = 255
"""Odd, so that zero is a level; symbols are bytes."""


def row_bytes(num_values: int, levels: int) -> int:
    return scaled.HEADER_BYTES + radix.row_bytes(num_values, levels)


def dither(num_values: int, seed: int) -> Floats:
    """The same for each row: value i from word i of the Philox stream of the seed, uniform in [-1/2, 1/2)."""
    dither_V: Floats = philox.uniform(philox.words(num_values, seed)) - np.float32(0.5)
    return dither_V


def encode(x_BV: Floats, levels: int, seed: int) -> bytes:
    """Rows of scale (`numpy.scaled`, divisor M = (levels - 1) / 2) and `rint(x / scale + dither)`, packed by radix.

    The integers are cut to -M .. M: a sum beyond these is at most half a step beyond, and rounding of the sum may say
    more than half. Raises ValueError for NaN and for magnitudes above 2^126.
    """
    most = levels // 2
    scale_B = scaled.scales(x_BV, most)
    level_BV = x_BV * scaled.inverses(scale_B)[:, None]
    level_BV += dither(x_BV.shape[1], seed)
    symbol_BV = (np.clip(np.rint(level_BV), -most, most) + np.float32(most)).astype(np.uint8)
    return scaled.join(scale_B, radix.pack_rows(symbol_BV, levels))


def decode(data: bytes, x_BV: Floats, levels: int, seed: int) -> None:
    """`scale * (level - dither)`, into `x_BV`. Raises ValueError for a scale or a word that no encoder writes."""
    num_rows, num_values = x_BV.shape
    coded_BP = np.frombuffer(data, np.uint8).reshape(num_rows, row_bytes(num_values, levels))
    scale_B = scaled.read(coded_BP, levels // 2)
    radix.unpack_rows(np.ascontiguousarray(coded_BP[:, scaled.HEADER_BYTES :]), x_BV, levels, -(levels // 2))
    x_BV -= dither(num_values, seed)
    x_BV *= scale_B[:, None]
