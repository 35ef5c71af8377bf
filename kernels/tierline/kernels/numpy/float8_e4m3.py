"""OCP E4M3: sign, 4 bits of exponent with bias 7, 3 of fraction; no infinities, NaN where all bits below the sign are
set. Open Compute Project, "OCP 8-bit Floating Point Specification (OFP8)", revision 1.0, 2023."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tierline.kernels.numpy import scaled

Floats = npt.NDArray[np.float32]

LARGEST = 448.0
BAD_VALUE = "a value is infinite"

_SIZE = np.arange(128)
_POSITIVE = np.where(_SIZE < 8, _SIZE * 2.0**-9, (8 + _SIZE % 8) * 2.0 ** (_SIZE // 8 - 10))
_POSITIVE[127] = np.nan
VALUES: Floats = np.concatenate([_POSITIVE, -_POSITIVE]).astype(np.float32)
"""What each of the 256 codes means."""


def row_bytes(num_values: int, scale: bool) -> int:
    return num_values + (scaled.HEADER_BYTES if scale else 0)


def encode(x_BV: Floats, scale: bool = False) -> bytes:
    """A byte per value, rounded to nearest, ties to even; beyond 448 saturates; NaN stays NaN.

    Raises ValueError for infinities. With `scale`, rows start with it (`numpy.scaled`, divisor 448) and x / scale is
    coded. Raises ValueError then for NaN and for magnitudes above 2^126.
    """
    if not scale:
        if np.isinf(x_BV).any():
            raise ValueError(BAD_VALUE)
        return _codes(x_BV).tobytes()
    scale_B = scaled.scales(x_BV, LARGEST)
    return scaled.join(scale_B, _codes(x_BV * scaled.inverses(scale_B)[:, None]))


def decode(data: bytes, x_BV: Floats, scale: bool = False) -> None:
    """Into `x_BV`. With `scale`, raises ValueError for a scale that no encoder writes, and for NaN."""
    code_BP = np.frombuffer(data, np.uint8).reshape(len(x_BV), row_bytes(x_BV.shape[1], scale))
    if not scale:
        VALUES.take(code_BP, out=x_BV)
        return
    scale_B = scaled.read(code_BP, LARGEST)
    VALUES.take(code_BP[:, scaled.HEADER_BYTES :], out=x_BV)
    if np.isnan(x_BV).any():
        raise ValueError("a value behind a scale is NaN")
    x_BV *= scale_B[:, None]


def _codes(x_BV: Floats) -> npt.NDArray[np.uint8]:
    bits = np.ascontiguousarray(x_BV).view(np.uint32)
    size = bits & np.uint32(0x7FFFFFFF)
    # From 2^-6: 3 bits of the fraction are kept, the rest is rounded, and 120 is the difference of the biases.
    normal = (size + (np.uint32(0x7FFFF) + ((size >> np.uint32(20)) & np.uint32(1)))) >> np.uint32(20)
    normal = np.minimum(np.maximum(normal, np.uint32(120 * 8)) - np.uint32(120 * 8), np.uint32(0x7E))
    small = size < np.float32(2.0**-6).view(np.uint32)  # even steps of 2^-9
    subnormal = np.rint(np.where(small, size, np.uint32(0)).view(np.float32) * np.float32(512)).astype(np.uint32)
    size_code = np.where(np.isnan(x_BV), np.uint32(0x7F), np.where(small, subnormal, normal))
    code: npt.NDArray[np.uint8] = (size_code | (bits >> np.uint32(24) & np.uint32(0x80))).astype(np.uint8)
    return code
