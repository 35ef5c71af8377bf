"""float32 values on a scale of 256 steps between the minimum and maximum of each row: one byte per value.

`code = rint((x - lo) / scale)`, decoded as `code * scale + lo`,
with lo = min(row) and scale = max((max(row) - lo) / 255, 2^-126).

Bytes of one row, rows one after the other: float32 lo, float32 scale (little-endian), then V uint8 codes.
NaN, infinities and magnitudes above 2^126 have no place on such a scale: `encode` raises CodecError.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from tierline.core.codec._check import check_head, check_length, float_rows
from tierline.core.errors import CodecError, CorruptPayload
from tierline.core.types import Array, Payload, TensorSpec
from tierline.kernels.numpy import HEADER_BYTES, affine_decode, affine_encode


class Affine:
    """Codec `affine`."""

    dtypes: ClassVar[tuple[str, ...]] = ("float32",)

    def encode(self, x_B: Array, *, seed: int = 0) -> Payload:
        try:
            coded_BP = affine_encode(float_rows(x_B, "affine"))
        except ValueError as error:
            raise CodecError(f"affine: {error}; use float16 or raw for such values") from None
        return Payload("affine", "float32", x_B.shape, coded_BP.tobytes())

    def decode(self, payload: Payload, limit: TensorSpec, *, max_rows: int = 4096) -> Array:
        num_rows = check_head(payload, "affine", self.dtypes, limit, max_rows)
        num_row_bytes = HEADER_BYTES + math.prod(limit.shape)
        check_length(payload, num_rows * num_row_bytes)
        coded_BP = np.frombuffer(payload.data, np.uint8).reshape(num_rows, num_row_bytes)
        try:
            return affine_decode(coded_BP).reshape(num_rows, *limit.shape)
        except ValueError as error:
            raise CorruptPayload(f"affine: {error}") from None

    def max_error(self, x_B: Array) -> float:
        """Half a step of the widest row, plus what float32 rounding adds on the way there and back."""
        rows_BV = float_rows(x_B, "affine")
        if rows_BV.size == 0:
            return 0.0
        lo_B = rows_BV.min(axis=1).astype(np.float64)
        hi_B = rows_BV.max(axis=1).astype(np.float64)
        rounding_B = 4 * np.finfo(np.float32).eps * (np.abs(lo_B) + np.abs(hi_B))
        bound_B = (hi_B - lo_B) / 510 + rounding_B + 2.0**-126
        return float(np.where(hi_B == lo_B, 0.0, bound_B).max())

    def size_bounds(self, spec: TensorSpec, num_rows: int = 1) -> tuple[int, int]:
        num_bytes = num_rows * (HEADER_BYTES + math.prod(spec.shape))
        return num_bytes, num_bytes
