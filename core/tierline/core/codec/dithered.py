"""float32 values by subtractive dither: the error is uniform and does not depend on them, at log2(L) bits per value.

`q = rint(x / s + u)`, decoded as `s (q - u)`, with s = max|x| of the row over M = (L - 1) / 2 (at least 2^-126; 0 for a
row of zeros), L odd `levels`, q in -M .. M, and u uniform in [-1/2, 1/2) from a generator both ends share. The error is
uniform in [-s/2, s/2], of mean 0 and variance s^2 / 12, whatever is coded: decoded sums and gradients are unbiased.
Source: Abdi, Fekri, "Reducing Communication Overhead via CEO in Distributed Training", SPAWC 2019, and "Nested
Dithered Quantization for Communication Reduction in Distributed Training", arXiv 1904.01197 (DQSG);
Schuchman, "Dither Signals and Their Effect on Quantization Noise", 1964. Deviations: one scale per row of a batch.
Status: checked (moments and independence of the error).

`encode` takes `seed`; it travels as parameter `seed` of the payload and must be an integer below 2^53. Value i of each
row is dithered by word i of the Philox4x32-10 stream of key `seed` (words 0 and 1 of the counter count blocks of four,
2 and 3 are 0): u = (word >> 8) * 2^-24 - 1/2. Rows share u, so give each tensor a seed of its own.

Bytes of one row, rows one after the other: float32 s (little-endian), then the symbols q + M as `radix:L` packs them.
NaN, infinities and magnitudes above 2^126 have no place on such a scale: `encode` raises CodecError.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from tierline.core.codec._check import check_head, check_length, float_rows, result
from tierline.core.coding import canonical
from tierline.core.errors import CodecError, ConfigError, CorruptPayload
from tierline.core.types import Array, Payload, TensorSpec
from tierline.kernels import dithered as kernel

_SEEDS = 2**53
"""A parameter of a payload is a double, which holds integers below this one exactly."""


class Dithered:
    """Codec `dithered`."""

    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    role: ClassVar[str] = "values"

    def __init__(self, *, levels: int = 15) -> None:
        if not (3 <= levels <= kernel.MAX_LEVELS and levels % 2):
            raise ConfigError(f"levels is {levels}, an odd number from 3 to {kernel.MAX_LEVELS}")
        self._levels = levels
        self.token = canonical("dithered", {"levels": levels}, {"levels": 15})

    def encode(self, x_B: Array, *, seed: int = 0) -> Payload:
        if not 0 <= seed < _SEEDS or seed != int(seed):
            raise CodecError(f"{self.token}: seed is {seed}, an integer from 0 to 2^53 - 1")
        try:
            data = kernel.encode(float_rows(x_B, self.token), self._levels, int(seed))
        except ValueError as error:
            raise CodecError(f"{self.token}: {error}; use bfloat16 or raw for such values") from None
        return Payload(self.token, "float32", x_B.shape, data, {"seed": float(seed)})

    def decode(self, payload: Payload, limit: TensorSpec, *, max_rows: int = 4096, out: Array | None = None) -> Array:
        num_rows = check_head(payload, self.token, self.dtypes, limit, max_rows)
        num_values = math.prod(limit.shape)
        check_length(payload, num_rows * kernel.row_bytes(num_values, self._levels))
        seed = payload.params.get("seed", math.nan)
        if not 0 <= seed < _SEEDS or seed != int(seed):
            raise CorruptPayload(f"{self.token}: parameter seed is {seed}, no integer from 0 to 2^53 - 1")
        x_B = result(out, num_rows, limit)
        try:
            kernel.decode(payload.data, x_B.reshape(num_rows, num_values), self._levels, int(seed))
        except ValueError as error:
            raise CorruptPayload(f"{self.token}: {error}") from None
        return x_B

    def max_error(self, x_B: Array) -> float:
        """Half a step of the widest row, plus what float32 rounding adds on the way there and back."""
        most = float(np.max(np.abs(float_rows(x_B, self.token)), initial=0.0))
        step = max(most / (self._levels // 2), 2.0**-126) if most else 0.0
        return step * (0.5 + 4 * self._levels * float(np.finfo(np.float32).eps))

    def size_bounds(self, spec: TensorSpec, num_rows: int = 1) -> tuple[int, int]:
        num_bytes = num_rows * kernel.row_bytes(math.prod(spec.shape), self._levels)
        return num_bytes, num_bytes
