"""Fine dithered levels of which only the remainder is sent; what the receiver expects tells the rest (NDQSG).

    t = a x / s + u,  q1 = round(t),  send q = q1 - rho round(q1 / rho),    s = max_i |x_i| / M1,  rho = M1 / M2
    r = s (q - u) - a y,   C(x) = y + a (r - rho s round(r / (rho s))),     y the side information

u is uniform in [-1/2, 1/2) and known to both ends. With a = 1 and |x - y| below (rho - 1) s / 2 in each value, C(x) is
what `dithered` with M1 levels makes, at log2(rho) bits per value; values farther off are wrong by multiples of rho s.
In general, without such overload, the error per value is a^2 s^2 / 12 + (1 - a^2)^2 E (x - y)^2.
Abdi, Fekri, arXiv 1904.01197, and SPAWC 2019 (see `dithered`). A server may decode plain messages first and take the
running mean of what it has as y for the nested ones, in the order of NodeIds, as the authors do.
Deviations: q1 / rho is rounded where the authors round t / rho, which differs only where t lies halfway and would leave
the alphabet; one scale per tensor; no clipping. Sends log2(rho) bits per value and one number. Remembers nothing.
Status: checked (equal to `dithered` with good side information, and failing beyond it as the formula says).
"""

from __future__ import annotations

import numpy as np

from tierline.core.errors import ConfigError, ShapeMismatch
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
    scalar,
    seal,
)
from tierline.learning.compressor import Compressed, Factors, Floats, Promise
from tierline.learning.errors import RuleError


class NDQSG(Stateless):
    """Compressor `nested_dithered`. `fine` is M1, `coarse` M2; their ratio rho must be odd. `gain` is a."""

    def __init__(self, *, fine: int = 3, coarse: int = 1, gain: float = 1.0) -> None:
        ratio, rest = divmod(fine, coarse) if coarse >= 1 else (0, 1)
        if rest or ratio % 2 == 0 or not 3 <= ratio <= 255:
            raise ConfigError(f"nested_dithered: fine / coarse = {fine} / {coarse} must be odd, from 3 to 255")
        if not 0.0 < gain <= 1.0:
            raise ConfigError(f"nested_dithered: gain = {gain} must be above 0 and at most 1")
        self._fine, self._ratio, self._gain = fine, ratio, gain
        self.promise = Promise(unbiased=gain == 1.0, needs_side=True)
        self._token = f"radix:{ratio}:low={-(ratio // 2)}"

    def compress(self, key: Key, update: Array | Factors) -> Compressed:
        x = checked(key, update)
        step = self._step(x)
        t = _dither(key, x.size)
        if step > 0:
            t = t + self._gain * x.reshape(-1).astype(np.float64) / step
        level = np.rint(t)
        remainder = level - self._ratio * np.rint(level / self._ratio)
        levels = coded(remainder.astype(np.int32).reshape(1, -1), self._token)
        return seal(key, x.shape, {"remainders": levels}, step=step)

    def expand(self, key: Key, message: Compressed, side: Array | None = None) -> Floats:
        (remainders,) = opened(key, message, "remainders")
        if side is None:
            raise RuleError("nested_dithered: expand needs side=, the receiver's own estimate of the update")
        if side.shape != message.shape:
            raise ShapeMismatch(f"nested_dithered: side is {list(side.shape)}, the update {list(message.shape)}")
        num_values, step = int(np.prod(message.shape)), scalar(message, "step")
        level = decoded(remainders, self._token, (1, num_values), "int32")[0] - _dither(key, num_values)
        if step <= 0:  # an update of zeros
            return np.zeros(message.shape, np.float32)
        y = side.reshape(-1).astype(np.float64)
        r = step * level - self._gain * y
        wide = self._ratio * step
        return restored(key, message, y + self._gain * (r - wide * np.rint(r / wide)))

    def expected_error(self, update: Array | Factors) -> float:
        """With side information that is right."""
        x = array(update)
        return x.size * (self._gain * self._step(x)) ** 2 / 12

    def max_bytes(self, update: Array | Factors) -> int:
        coded = coded_bytes(self._token, (1, int(np.prod(update.shape))), "int32")
        return message_bytes(coded, num_scalars=1)

    def _step(self, x: Floats) -> float:
        return float(np.abs(x).max(initial=0.0)) / self._fine


def _dither(key: Key, num_values: int) -> Array:
    return np.asarray(key.child("dither").uniform(num_values).astype(np.float64) - 0.5)
