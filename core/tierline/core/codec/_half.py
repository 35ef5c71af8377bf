"""What the codecs of two bytes per value share: any float32 has a code, so only `max_error` looks at values."""

from __future__ import annotations

import math
from typing import ClassVar, Protocol

import numpy as np

from tierline.core.codec._check import RowSize, check_head, check_length, float_rows, result
from tierline.core.types import Array, Payload, TensorSpec


class _Kernel(Protocol):
    """A module such as `tierline.kernels.bfloat16`."""

    def row_bytes(self, num_values: int, /) -> int: ...
    def encode(self, x_BV: Array, /) -> bytes: ...
    def decode(self, data: bytes, x_BV: Array, /) -> None: ...


class Half:
    """A codec but for its `token` and its `kernel`."""

    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    role: ClassVar[str] = "values"
    row_size: ClassVar[RowSize] = RowSize(0, 16)
    token: ClassVar[str]
    kernel: ClassVar[_Kernel]

    def encode(self, x_B: Array, *, seed: int = 0) -> Payload:
        return Payload(self.token, "float32", x_B.shape, self.kernel.encode(float_rows(x_B, self.token)))

    def decode(self, payload: Payload, limit: TensorSpec, *, max_rows: int = 4096, out: Array | None = None) -> Array:
        num_rows = check_head(payload, self.token, self.dtypes, limit, max_rows)
        check_length(payload, num_rows * self.kernel.row_bytes(math.prod(limit.shape)))
        x_B = result(out, num_rows, limit)
        self.kernel.decode(payload.data, x_B)
        return x_B

    def max_error(self, x_B: Array) -> float:
        """The error itself, since rounding is deterministic; NaN and infinities cost nothing."""
        finite = x_B[np.isfinite(x_B)]
        coded = np.empty_like(finite)
        self.kernel.decode(self.kernel.encode(finite), coded)
        return float(np.max(np.abs(coded - finite), initial=0.0))

    def size_bounds(self, spec: TensorSpec, num_rows: int = 1) -> tuple[int, int]:
        num_bytes = num_rows * self.kernel.row_bytes(math.prod(spec.shape))
        return num_bytes, num_bytes
