"""float32 values on an even scale of 2^bits steps between the minimum and maximum of each row: 1 to 8 bits per value.

`code = rint((x - lo) / scale)`, decoded as `code * scale + lo`,
with lo = min(row) and scale = max((max(row) - lo) / (2^bits - 1), 2^-126).

Bytes of one row, rows one after the other: float32 lo, float32 scale (little-endian), then V codes as one stream of
bits: code i in bits i * bits and up, least significant bit first; padding bits 0. At 8 bits that is a byte per value.
NaN, infinities and magnitudes above 2^126 have no place on such a scale: `encode` raises CodecError.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from tierline.core.codec._check import CodeRows, check_head, check_length, float_rows, result
from tierline.core.coding import canonical
from tierline.core.errors import CodecError, ConfigError, CorruptPayload
from tierline.core.types import Array, Payload, TensorSpec
from tierline.kernels import affine as kernel


class Affine:
    """Codec `affine`."""

    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    role: ClassVar[str] = "values"

    def __init__(self, *, bits: int = 8) -> None:
        if not 1 <= bits <= 8:
            raise ConfigError(f"bits is {bits}, from 1 to 8")
        self._bits = bits
        self.code_rows = CodeRows(kernel.HEADER_BYTES, bits)
        self.token = canonical("affine", {"bits": bits}, {"bits": 8})

    def encode(self, x_B: Array, *, seed: int = 0) -> Payload:
        try:
            return Payload(self.token, "float32", x_B.shape, kernel.encode(float_rows(x_B, self.token), self._bits))
        except ValueError as error:
            raise CodecError(f"{self.token}: {error}; use float16 or raw for such values") from None

    def decode(self, payload: Payload, limit: TensorSpec, *, max_rows: int = 4096, out: Array | None = None) -> Array:
        num_rows = check_head(payload, self.token, self.dtypes, limit, max_rows)
        num_values = math.prod(limit.shape)
        check_length(payload, num_rows * kernel.row_bytes(num_values, self._bits))
        x_B = result(out, num_rows, limit)
        try:
            kernel.decode(payload.data, x_B.reshape(num_rows, num_values), self._bits)
        except ValueError as error:
            raise CorruptPayload(f"{self.token}: {error}") from None
        return x_B

    def max_error(self, x_B: Array) -> float:
        """Half a step of the widest row, plus what float32 rounding adds on the way there and back."""
        rows_BV = float_rows(x_B, self.token)
        if rows_BV.size == 0:
            return 0.0
        lo_B = rows_BV.min(axis=1).astype(np.float64)
        hi_B = rows_BV.max(axis=1).astype(np.float64)
        rounding_B = 4 * np.finfo(np.float32).eps * (np.abs(lo_B) + np.abs(hi_B))
        bound_B = (hi_B - lo_B) / (2 * (2**self._bits - 1)) + rounding_B + 2.0**-126
        return float(np.where(hi_B == lo_B, 0.0, bound_B).max())

    def size_bounds(self, spec: TensorSpec, num_rows: int = 1) -> tuple[int, int]:
        num_bytes = num_rows * kernel.row_bytes(math.prod(spec.shape), self._bits)
        return num_bytes, num_bytes
