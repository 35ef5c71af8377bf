"""One bit per value, its sign: what a binary activation produces, at 1/32 of float32.

Bit 1 means x >= 0 and decodes to +1.0, bit 0 to -1.0 (so -0.0 is +1 and infinities keep their sign only).
Lossless for features of +-1. NaN has no sign: `encode` raises CodecError.

Bytes of one row, rows one after the other: ceil(V / 8) bytes, first value in the most significant bit, padding bits 0.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from tierline.core.codec._check import FLOAT32, CodeRows, RowSize, check_floats, check_head, check_length, result
from tierline.core.errors import CodecError, CorruptPayload
from tierline.core.types import Array, Payload, TensorSpec
from tierline.kernels import bitplane as kernel


class Bitplane:
    """Codec `bitplane`."""

    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    role: ClassVar[str] = "values"
    token: ClassVar[str] = "bitplane"
    code_rows: ClassVar[CodeRows] = CodeRows(0, 1, high_first=True)
    row_size: ClassVar[RowSize] = RowSize(0, 1)

    def encode(self, x_B: Array, *, seed: int = 0) -> Payload:
        shape = x_B.shape
        if x_B.dtype is not FLOAT32 or not shape:  # the usual case costs no call: a small map takes as long as ten
            check_floats(x_B, "bitplane")
        try:
            return Payload("bitplane", "float32", shape, kernel.encode(x_B))
        except ValueError as error:
            raise CodecError(f"bitplane: {error}; use float16 or raw for such values") from None

    def decode(self, payload: Payload, limit: TensorSpec, *, max_rows: int = 4096, out: Array | None = None) -> Array:
        num_rows = check_head(payload, "bitplane", self.dtypes, limit, max_rows)
        check_length(payload, num_rows * kernel.row_bytes(math.prod(limit.shape)))
        x_B = result(out, num_rows, limit)
        try:
            kernel.decode(payload.data, x_B)
        except ValueError as error:
            raise CorruptPayload(f"bitplane: {error}") from None
        return x_B

    def max_error(self, x_B: Array) -> float:
        """Exact: the largest distance to +-1, 0.0 for binary features. Raises CodecError for NaN, as `encode` does."""
        if np.isnan(x_B).any():
            raise CodecError("bitplane: a value is NaN, which has no sign; use float16 or raw for such values")
        return float(np.max(np.abs(x_B - np.where(x_B >= 0, 1, -1)), initial=0.0))

    def size_bounds(self, spec: TensorSpec, num_rows: int = 1) -> tuple[int, int]:
        num_bytes = num_rows * (kernel.row_bytes(math.prod(spec.shape)))
        return num_bytes, num_bytes
