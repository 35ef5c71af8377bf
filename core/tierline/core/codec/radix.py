"""Integers of an alphabet of any size L, lossless, near log2(L) bits per value: `radix:3` spends 1.6 bits on a trit.

The alphabet is `low`, ..., `low + L - 1`: `radix:L` takes 0 to L-1, `radix:low=-1` the ternary -1, 0, 1. Symbols
`x - low` are the digits of words in base L (positional notation); the word size is the one that wastes least.
float32 values may be coded too, if they are such integers (|x| <= 2^22). Values outside of the alphabet, NaN and
infinities are no symbols: `encode` raises CodecError. Zero of either sign decodes as +0.

Bytes of one row of V values, rows one after the other: with n from 1 to 8 bytes (the smallest of those with the most
digits per byte) and k digits the most with L^k <= 256^n, there are W = ceil(V / k) words of D = ceil(V / W) digits,
each of as many bytes as L^D - 1 needs. Digit j (weight L^j) of word w is the symbol of value j * W + w, 0 beyond the
last value; byte i (weight 256^i) of word w lies at i * W + w. A word of L^D or more is corrupt.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from tierline.core.codec._check import check_head, check_length, result, rows
from tierline.core.coding import canonical
from tierline.core.errors import CodecError, ConfigError, CorruptPayload
from tierline.core.types import Array, Payload, TensorSpec
from tierline.kernels import radix as kernel


class Radix:
    """Codec `radix`."""

    dtypes: ClassVar[tuple[str, ...]] = ("float32", "uint8", "int8", "int32")
    role: ClassVar[str] = "values"

    def __init__(self, *, levels: int = 3, low: int = 0) -> None:
        if not 2 <= levels <= kernel.MAX_LEVELS:
            raise ConfigError(f"levels is {levels}, from 2 to {kernel.MAX_LEVELS}")
        self._names = {np.dtype(name): name for name in self.dtypes if kernel.fits(np.dtype(name), levels, low)}
        if not self._names:
            raise ConfigError(f"low is {low}, but no dtype holds all of {low} to {low + levels - 1}")
        self.alphabet = range(low, low + levels)
        self._levels, self._low = levels, low
        self.token = canonical("radix", {"levels": levels, "low": low}, {"levels": 3, "low": 0})

    def encode(self, x_B: Array, *, seed: int = 0) -> Payload:
        x_BV = rows(x_B, self.token, self.dtypes)
        name = self._names.get(x_B.dtype)
        if name is None:
            last = self._low + self._levels - 1
            raise CodecError(f"{self.token}: {x_B.dtype} does not hold all of {self._low} to {last}; cast to int32")
        try:
            data = kernel.pack(x_BV, self._levels, self._low)
        except ValueError as error:
            raise CodecError(f"{self.token}: {error}; name a larger alphabet or use raw") from None
        return Payload(self.token, name, x_B.shape, data)

    def decode(self, payload: Payload, limit: TensorSpec, *, max_rows: int = 4096, out: Array | None = None) -> Array:
        num_rows = check_head(payload, self.token, self.dtypes, limit, max_rows)
        num_values = math.prod(limit.shape)
        if limit.dtype not in self._names.values():
            raise CorruptPayload(f"{self.token}: no alphabet of {limit.dtype}")
        check_length(payload, num_rows * kernel.row_bytes(num_values, self._levels))
        x_B = result(out, num_rows, limit)
        try:
            kernel.unpack(payload.data, x_B.reshape(num_rows, num_values), self._levels, self._low)
        except ValueError as error:
            raise CorruptPayload(f"{self.token}: {error}") from None
        return x_B

    def max_error(self, x_B: Array) -> float:
        return 0.0

    def size_bounds(self, spec: TensorSpec, num_rows: int = 1) -> tuple[int, int]:
        num_bytes = num_rows * kernel.row_bytes(math.prod(spec.shape), self._levels)
        return num_bytes, num_bytes
