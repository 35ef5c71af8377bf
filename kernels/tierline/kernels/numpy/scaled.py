"""Rows that start with a float32 scale: their largest magnitude over the largest value that the codec has."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

HEADER_BYTES = 4
LIMIT = 2.0**126
"""Largest magnitude that is coded: nothing decoded can overflow below it."""

BAD_VALUE = "a value is NaN, infinite or above 2^126 in magnitude"
BAD_HEADER = "a row's header holds no scale that an encoder writes"

_TINY = np.finfo(np.float32).tiny


def scales(x_BV: Floats, divisor: float) -> Floats:
    """float32[B]: `max(max|x| / divisor, 2^-126)`, and 0 for rows of zeros.

    The floor (the smallest normal number) keeps the inverse finite. Raises ValueError for NaN and for magnitudes above
    2^126, infinities included.
    """
    most_B = np.maximum.reduce(np.abs(x_BV), axis=1, initial=np.float32(0))
    if not (most_B <= LIMIT).all():  # NaN fails too
        raise ValueError(BAD_VALUE)
    scale_B: Floats = np.where(most_B > 0, np.maximum(most_B / np.float32(divisor), _TINY), np.float32(0))
    return scale_B


def inverses(scale_B: Floats) -> Floats:
    """`1 / scale`, and 0 for rows of zeros."""
    inverse_B: Floats = np.divide(np.float32(1), scale_B, out=np.zeros_like(scale_B), where=scale_B > 0)
    return inverse_B


def read(coded_BP: Bytes, divisor: float) -> Floats:
    """The scales in front of coded rows. Raises ValueError for one that no encoder writes."""
    scale_B: Floats = coded_BP[:, :HEADER_BYTES].copy().view("<f4")[:, 0].astype(np.float32)
    most = np.float32(LIMIT) / np.float32(divisor)
    if not ((scale_B == 0) | ((scale_B >= _TINY) & (scale_B <= most))).all():
        raise ValueError(BAD_HEADER)
    return scale_B


def join(scale_B: Floats, coded_BP: Bytes) -> bytes:
    """Rows of scale and codes."""
    return np.concatenate([scale_B.astype("<f4")[:, None].view(np.uint8), coded_BP], axis=1).tobytes()
