"""Each magnitude as a level between zero and the tensor's norm, rounded at random so that the mean is right.

    C(x)_i = c |x| sign(x_i) floor(s |x_i| / |x| + u_i) / s,   u_i uniform in [0, 1)
    norm = "l2":   |x| Euclidean,     E |C(x) - x|^2 <= w |x|^2,  w = min(d / s^2, sqrt(d) / s)   (c = 1)
    norm = "max":  |x| = max_i |x_i|,  E |C(x) - x|^2 <= d max_i |x_i|^2 / (4 s^2)                (c = 1)
    scaled = true: c = 1 / (1 + w): no longer unbiased, but error feedback converges; "l2" only

Alistarh, Grubic, Li, Tomioka, Vojnovic, "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding",
NeurIPS 2017, section 3 and Lemma 3.1; scaled as in Koloskova, Stich, Jaggi, "Decentralized Stochastic Optimization and
Gossip Algorithms with Compressed Communication", ICML 2019, section 3.5. Deviations: levels are packed at
log2(2 s + 1) bits each, where the paper codes them by Elias's integers; one norm per tensor, no buckets.
Sends 2 s + 1 levels and one number. Remembers nothing.
Status: partial (mean and error over many keys, twice the error of `dithered` on uniform data; the paper's text was not
at hand, and its coding is not here).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from tierline.core.errors import ConfigError
from tierline.core.rng import Key
from tierline.core.types import Array
from tierline.learning.compress import _levels
from tierline.learning.compress._message import (
    Stateless,
    array,
    checked,
    message_bytes,
    opened,
    restored,
    scalar,
    seal,
    squares,
)
from tierline.learning.compressor import Compressed, Factors, Floats, Promise


class QSGD(Stateless):
    """Compressor `qsgd`. `steps` is s, the levels beside zero on each side."""

    def __init__(self, *, steps: int = 7, norm: Literal["l2", "max"] = "l2", scaled: bool = False) -> None:
        if not 1 <= steps <= _levels.MAX_STEPS:
            raise ConfigError(f"qsgd: steps = {steps}, from 1 to {_levels.MAX_STEPS}")
        if norm not in ("l2", "max"):
            raise ConfigError(f'qsgd: norm = {norm!r}; valid: "l2", "max"')
        if scaled and norm != "l2":
            raise ConfigError('qsgd: scaled = true needs norm = "l2"')
        self._steps, self._norm, self._scaled = steps, norm, scaled
        self.promise = Promise(unbiased=not scaled, contracts=scaled)

    def compress(self, key: Key, update: Array | Factors) -> Compressed:
        x = checked(key, update)
        scale = float(np.abs(x).max(initial=0.0)) if self._norm == "max" else math.sqrt(squares(x))
        return seal(key, x.shape, {"levels": _levels.rounded(key, x, scale, self._steps)}, norm=scale)

    def expand(self, key: Key, message: Compressed, side: Array | None = None) -> Floats:
        (levels,) = opened(key, message, "levels")
        num_values = int(np.prod(message.shape))
        factor = 1 / (1 + self._relative(num_values)) if self._scaled else 1.0
        flat = _levels.values(levels, num_values, scalar(message, "norm") * factor, self._steps)
        return restored(key, message, flat)

    def expected_error(self, update: Array | Factors) -> float:
        x = array(update)
        if self._norm == "max":
            return x.size * (float(np.abs(x).max(initial=0.0)) / (2 * self._steps)) ** 2
        w = self._relative(x.size)
        return squares(x) * (w / (1 + w) if self._scaled else w)

    def max_bytes(self, update: Array | Factors) -> int:
        return message_bytes(_levels.num_bytes(int(np.prod(update.shape)), self._steps), num_scalars=1)

    def _relative(self, num_values: int) -> float:
        """w of the formula."""
        return min(num_values / self._steps**2, math.sqrt(num_values) / self._steps)
