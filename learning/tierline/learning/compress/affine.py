"""Each value as a whole number of 1 to 8 bits on an even scale between the tensor's least and greatest.

    C(x)_i = lo + s round((x_i - lo) / s),   s = max((hi - lo) / (2^bits - 1), 2^-126)

With 8 bits this is the uint8 of low-precision decentralised training: Aketi, Kodge, Roy, "Low Precision Decentralized
Distributed Training over IID and non-IID Data", Neural Networks 155, 2022, section 3; the published code only imitates
it in float32, here the bytes travel (codec `affine`). `rounding = "stochastic"` rounds up with the probability of the
fraction and is unbiased, as the paper does for gradients.
Deviations: s is at least 2^-126, not 1e-8, so that small updates keep their digits.
Sends `bits` per value, lo and s. Remembers nothing.
Status: checked (error of even rounding, s^2 / 12 on uniform values; bytes).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from tierline.core.errors import ConfigError
from tierline.core.rng import Key
from tierline.core.types import Array
from tierline.learning.compress._message import (
    Stateless,
    array,
    checked,
    coded,
    coded_bytes,
    decoded,
    message_bytes,
    opened,
    restored,
    seal,
)
from tierline.learning.compressor import Compressed, Factors, Floats, Promise


class Affine(Stateless):
    """Compressor `affine`."""

    def __init__(self, *, bits: int = 8, rounding: Literal["nearest", "stochastic"] = "nearest") -> None:
        if not 1 <= bits <= 8:
            raise ConfigError(f"affine: bits = {bits} must be from 1 to 8")
        if rounding not in ("nearest", "stochastic"):
            raise ConfigError(f'affine: rounding = {rounding!r}; valid: "nearest", "stochastic"')
        self._is_random = rounding == "stochastic"
        self._token = f"affine:{bits}" + (":rounding=stochastic" if self._is_random else "")
        self._steps = 2**bits - 1
        self.promise = Promise(unbiased=self._is_random)

    def compress(self, key: Key, update: Array | Factors) -> Compressed:
        x = checked(key, update)
        codes = coded(x.reshape(1, -1), self._token, key=key if self._is_random else None)
        return seal(key, x.shape, {"codes": codes})

    def expand(self, key: Key, message: Compressed, side: Array | None = None) -> Floats:
        (codes,) = opened(key, message, "codes")
        return restored(key, message, decoded(codes, self._token, (1, math.prod(message.shape))))

    def expected_error(self, update: Array | Factors) -> float:
        """A quarter of a step's square per value, and what float32 rounds."""
        x = array(update).astype(np.float64)
        if not x.size:
            return 0.0
        lo, hi = float(x.min()), float(x.max())
        step = max((hi - lo) / self._steps, 2.0**-126)
        rounding = 4 * float(np.finfo(np.float32).eps) * (abs(lo) + abs(hi))
        return float(x.size * (step / 2 + rounding) ** 2)

    def max_bytes(self, update: Array | Factors) -> int:
        return message_bytes(coded_bytes(self._token, (1, math.prod(update.shape))))
