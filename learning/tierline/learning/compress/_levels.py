"""Rounding at random between the levels of a scale, as `qsgd` and `terngrad` do: unbiased, the draw not subtracted."""

from __future__ import annotations

import numpy as np

from tierline.core.rng import Key
from tierline.core.types import Array, Payload
from tierline.learning.compress._message import coded, coded_bytes, decoded
from tierline.learning.compressor import Floats

MAX_STEPS = 127
"""Symbols are bytes."""


def rounded(key: Key, x: Floats, scale: float, steps: int) -> Payload:
    """sign(x) floor(steps |x| / scale + u), u uniform in [0, 1): integers in -steps .. steps; zeros for scale 0."""
    flat = x.reshape(-1).astype(np.float64)
    up = key.child("round").uniform(flat.size)
    level = np.floor(np.abs(flat) * (steps / scale) + up) if scale > 0 else np.zeros_like(flat)
    # Without the limit the largest value could round up once more.
    symbols = (np.sign(flat) * np.minimum(level, steps)).astype(np.int8)
    return coded(symbols.reshape(1, -1), token(steps))


def values(payload: Payload, num_values: int, scale: float, steps: int) -> Array:
    """What the symbols stand for: float64[num_values]."""
    symbols_1V = decoded(payload, token(steps), (1, num_values), "int8")
    return np.asarray(symbols_1V[0] * (scale / steps))


def num_bytes(num_values: int, steps: int) -> int:
    return coded_bytes(token(steps), (1, num_values), "int8")


def token(steps: int) -> str:
    return f"radix:{2 * steps + 1}:low={-steps}"
