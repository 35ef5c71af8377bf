"""Quantisers of least squared error for known distributions, and which centre each value of an array is nearest to.

Lloyd, "Least Squares Quantization in PCM", IEEE Trans. Information Theory 1982; Max, "Quantizing for Minimum
Distortion", IRE Trans. 1960: each centre is the mean of its cell, each border lies halfway between two centres.
Status: checked (against Max's table for the normal distribution at 2, 4 and 8 levels).
"""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np

from tierline.core.types import Array
from tierline.learning.compressor import Floats

MODELS = ("sn", "sfn", "u", "su")
"""Sparse normal, sparse folded normal, uniform, sparse uniform; the sparse ones keep exact zeros as a symbol."""


@cache
def centres(model: str, levels: int) -> tuple[float, ...]:
    """Centres for values whose root mean square is 1, ascending."""
    if model in ("u", "su"):
        return tuple(math.sqrt(3.0) * (2 * i + 1 - levels) / levels for i in range(levels))
    if model == "sfn":  # the positive half of a normal quantiser of twice as many levels
        return centres("sn", 2 * levels)[levels:]
    found = np.linspace(-1.5, 1.5, levels)
    for _ in range(10_000):
        borders = [-math.inf, *((found[1:] + found[:-1]) / 2).tolist(), math.inf]
        means = [_mean(low, high) for low, high in itertools.pairwise(borders)]
        moved = float(np.abs(np.array(means) - found).max())
        found = np.array(means)
        if moved < 1e-12:
            break
    return tuple(((found - found[::-1]) / 2).tolist())


def _mean(low: float, high: float) -> float:
    """Of a standard normal variable between two borders."""

    def density(x: float) -> float:
        return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    def below(x: float) -> float:
        return math.erf(x / math.sqrt(2)) / 2

    return (density(low) - density(high)) / (below(high) - below(low))


def is_sparse(model: str) -> bool:
    return model != "u"


def symbols(x: Floats, model: str, levels: int) -> tuple[Array, Array]:
    """Symbol of each value, int32, and the centres of the symbols, float64; the last symbol of a sparse model is an
    exact zero, its centre 0."""
    wide = x.astype(np.float64)
    counted = np.count_nonzero(x) if is_sparse(model) else x.size
    scale = math.sqrt(float((wide * wide).sum()) / counted) if counted else 0.0
    own = np.array(centres(model, levels)) * scale
    symbol = np.searchsorted((own[1:] + own[:-1]) / 2, wide).astype(np.int32)
    if is_sparse(model):
        symbol[x == 0] = levels
        own = np.append(own, 0.0)
    return symbol, own
