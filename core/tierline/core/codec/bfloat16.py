"""float32 values as bfloat16: two bytes per value, the range of float32 with 8 significant bits.

Bytes: B * V little-endian bfloat16 (the upper half of a float32), row after row. Rounds to nearest, ties to even.
NaN stays NaN (quieted) and infinities stay; a finite magnitude of 2^128 - 2^119 or more becomes an infinity, as
IEEE 754 says, and `max_error` is then infinite.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from tierline.core.codec._check import check_head, check_length, float_rows, result
from tierline.core.types import Array, Payload, TensorSpec
from tierline.kernels import bfloat16 as kernel


class Bfloat16:
    """Codec `bfloat16`."""

    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    role: ClassVar[str] = "values"
    token: ClassVar[str] = "bfloat16"

    def encode(self, x_B: Array, *, seed: int = 0) -> Payload:
        return Payload("bfloat16", "float32", x_B.shape, kernel.encode(float_rows(x_B, "bfloat16")))

    def decode(self, payload: Payload, limit: TensorSpec, *, max_rows: int = 4096, out: Array | None = None) -> Array:
        num_rows = check_head(payload, "bfloat16", self.dtypes, limit, max_rows)
        num_values = math.prod(limit.shape)
        check_length(payload, num_rows * kernel.row_bytes(num_values))
        x_B = result(out, num_rows, limit)
        kernel.decode(payload.data, x_B.reshape(num_rows, num_values))
        return x_B

    def max_error(self, x_B: Array) -> float:
        """The error itself, since rounding is deterministic; NaN and infinities cost nothing."""
        finite = x_B[np.isfinite(x_B)]
        coded = np.empty_like(finite)
        kernel.decode(kernel.encode(finite[None]), coded[None])
        return float(np.max(np.abs(coded - finite), initial=0.0))

    def size_bounds(self, spec: TensorSpec, num_rows: int = 1) -> tuple[int, int]:
        num_bytes = num_rows * kernel.row_bytes(math.prod(spec.shape))
        return num_bytes, num_bytes
