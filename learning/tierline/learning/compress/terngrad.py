"""Each value as -1, 0 or 1 times the largest magnitude, at random so that the mean is right.

    C(x)_i = m sign(x_i) b_i,   m = max_i |x_i|,   b_i = 1 with probability |x_i| / m, else 0
    E C(x) = x,   E |C(x) - x|^2 = sum_i |x_i| (m - |x_i|)

Wen, Xu, Yan, Wu, Wang, Chen, Li, "TernGrad: Ternary Gradients to Reduce Communication in Distributed Deep Learning",
NIPS 2017, section 3; `clip` (section 3.2, there 2.5) first cuts values to so many standard deviations, which is biased;
0 cuts nothing. Deviations: scales are each worker's own, where the paper can share their maximum among all workers.
Sends log2(3) bits per value and one number. Remembers nothing.
Status: partial (mean and error over many keys; the rule and the factor of clipping are recalled, not read).
"""

from __future__ import annotations

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


class TernGrad(Stateless):
    """Compressor `terngrad`."""

    def __init__(self, *, clip: float = 0.0) -> None:
        if not clip >= 0.0:
            raise ConfigError(f"terngrad: clip = {clip} must be at least 0; 0 cuts nothing")
        self._clip = clip
        self.promise = Promise(unbiased=clip == 0.0)

    def compress(self, key: Key, update: Array | Factors) -> Compressed:
        x = checked(key, update)
        cut = self._cut(x)
        largest = float(np.abs(cut).max(initial=0.0))
        return seal(key, x.shape, {"levels": _levels.rounded(key, cut, largest, 1)}, largest=largest)

    def expand(self, key: Key, message: Compressed, side: Array | None = None) -> Floats:
        (levels,) = opened(key, message, "levels")
        flat = _levels.values(levels, int(np.prod(message.shape)), scalar(message, "largest"), 1)
        return restored(key, message, flat)

    def expected_error(self, update: Array | Factors) -> float:
        """Of the random choice, and of what is cut."""
        x = array(update)
        cut = self._cut(x)
        magnitude = np.abs(cut).astype(np.float64)
        return float((magnitude * (magnitude.max(initial=0.0) - magnitude)).sum()) + squares(x - cut)

    def max_bytes(self, update: Array | Factors) -> int:
        return message_bytes(_levels.num_bytes(int(np.prod(update.shape)), 1), num_scalars=1)

    def _cut(self, x: Floats) -> Floats:
        if self._clip == 0.0 or not x.size:
            return x
        most = np.float32(self._clip * x.std(dtype=np.float64))
        return np.clip(x, -most, most)
