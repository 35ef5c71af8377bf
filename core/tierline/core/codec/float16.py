"""float32 values as IEEE half precision: two bytes per value, 11 significant bits.

Bytes: B * V little-endian float16, row after row. Rounds to nearest, ties to even. NaN stays NaN and infinities
stay; a finite magnitude of 65520 or more becomes an infinity, as IEEE 754 says, and `max_error` is then infinite.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from tierline.core.codec._check import check_head, check_length, float_rows, result
from tierline.core.types import Array, Payload, TensorSpec


class Float16:
    """Codec `float16`."""

    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    role: ClassVar[str] = "values"
    token: ClassVar[str] = "float16"

    def encode(self, x_B: Array, *, seed: int = 0) -> Payload:
        with np.errstate(over="ignore"):
            data = float_rows(x_B, "float16").astype("<f2").tobytes()
        return Payload("float16", "float32", x_B.shape, data)

    def decode(self, payload: Payload, limit: TensorSpec, *, max_rows: int = 4096, out: Array | None = None) -> Array:
        num_rows = check_head(payload, "float16", self.dtypes, limit, max_rows)
        check_length(payload, 2 * num_rows * math.prod(limit.shape))
        x_B = result(out, num_rows, limit)
        x_B[...] = np.frombuffer(payload.data, "<f2").reshape(x_B.shape)
        return x_B

    def max_error(self, x_B: Array) -> float:
        """The error itself, since rounding is deterministic; NaN and infinities cost nothing."""
        finite = x_B[np.isfinite(x_B)]
        with np.errstate(over="ignore"):
            return float(np.max(np.abs(finite.astype(np.float16) - finite), initial=0.0))

    def size_bounds(self, spec: TensorSpec, num_rows: int = 1) -> tuple[int, int]:
        num_bytes = 2 * num_rows * math.prod(spec.shape)
        return num_bytes, num_bytes
