"""float32 values as 8-bit floats, OCP E4M3: a byte per value, 4 significant bits from 2^-6 to 448, steps of 2^-9 below.

Rounds to nearest, ties to even. `float8_e4m3` casts values as they are: finite magnitudes beyond 448
saturate there (`max_error` tells), NaN stays NaN. `float8_e4m3:row` divides each row by the scale max|x| / 448 first
(at least 2^-126; 0 for a row of zeros), so any range fits: for gradients and features far from 1. Infinities have no
code, and with `row` NaN and magnitudes above 2^126 have no scale: `encode` raises CodecError.

Bytes of one row, rows one after the other: with `row` a little-endian float32 scale; then V codes, each the sign, 4
bits of exponent with bias 7 and 3 of fraction. Exponent 0 means fraction * 2^-9; there are no infinities; all seven
bits set is NaN, which is corrupt behind a scale.
Source: Open Compute Project, "OCP 8-bit Floating Point Specification (OFP8)", revision 1.0, 2023, saturating mode.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from tierline.core.codec._check import RowSize, check_head, check_length, float_rows, result
from tierline.core.coding import canonical
from tierline.core.errors import CodecError, ConfigError, CorruptPayload
from tierline.core.types import Array, Payload, TensorSpec
from tierline.kernels import float8_e4m3 as kernel


class Float8E4M3:
    """Codec `float8_e4m3`."""

    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    role: ClassVar[str] = "values"

    def __init__(self, *, scale: str = "none") -> None:
        if scale not in ("none", "row"):
            raise ConfigError(f"scale is {scale!r}, one of none, row")
        self._scaled = scale == "row"
        self.row_size = RowSize(4 if self._scaled else 0, 8)
        self.token = canonical("float8_e4m3", {"scale": scale}, {"scale": "none"})

    def encode(self, x_B: Array, *, seed: int = 0) -> Payload:
        try:
            data = kernel.encode(float_rows(x_B, self.token), self._scaled)
        except ValueError as error:
            raise CodecError(f"{self.token}: {error}; use bfloat16 or raw for such values") from None
        return Payload(self.token, "float32", x_B.shape, data)

    def decode(self, payload: Payload, limit: TensorSpec, *, max_rows: int = 4096, out: Array | None = None) -> Array:
        num_rows = check_head(payload, self.token, self.dtypes, limit, max_rows)
        num_values = math.prod(limit.shape)
        check_length(payload, num_rows * kernel.row_bytes(num_values, self._scaled))
        x_B = result(out, num_rows, limit)
        try:
            kernel.decode(payload.data, x_B.reshape(num_rows, num_values), self._scaled)
        except ValueError as error:
            raise CorruptPayload(f"{self.token}: {error}") from None
        return x_B

    def max_error(self, x_B: Array) -> float:
        """The error itself, since rounding is deterministic; NaN costs nothing. Raises CodecError as `encode` does."""
        coded_B = self.decode(self.encode(x_B), TensorSpec("float32", x_B.shape[1:]), max_rows=len(x_B))
        return float(np.max(np.abs(coded_B - x_B), initial=0.0, where=~np.isnan(x_B)))

    def size_bounds(self, spec: TensorSpec, num_rows: int = 1) -> tuple[int, int]:
        num_bytes = num_rows * kernel.row_bytes(math.prod(spec.shape), self._scaled)
        return num_bytes, num_bytes
