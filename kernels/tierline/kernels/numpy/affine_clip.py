"""Ranges of `affine` that leave outliers out. All counts are integers and all sums are taken in a stated order, so that
other languages find the same ranges to the bit."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Sums = npt.NDArray[np.float64]

_MIN_BINS, _COARSE = 2048, 16
_MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))


def num_dropped(num_values: int, percent: float) -> int:
    """Values left out at each end of a row so that about `percent` of them stay, and always one."""
    return min(int(num_values * (100.0 - percent) / 200.0), (num_values - 1) // 2)


def percentile(x_V: Floats, dropped: int) -> tuple[np.float32, np.float32]:
    """Smallest and largest value without the `dropped` smallest and the `dropped` largest ones."""
    last = len(x_V) - 1 - dropped
    part_V = np.partition(x_V, (dropped, last))
    return part_V[dropped], part_V[last]


def least_error(x_V: Floats, lo: np.float32, hi: np.float32, steps: int) -> tuple[np.float32, np.float32]:
    """The range within [lo, hi], the row's minimum and maximum, whose `steps` even steps cost the least squared error.

    Values are counted in some 2048 even bins whose ends are levels of the whole range, so that its own error is exact
    for values that lie on its levels. All ranges between 16ths of it are tried; then the ends of the best one move, low
    end first, down before up, by steps that are halved when no move helps. Only a strictly smaller error replaces.
    """
    num_bins = steps * -(-_MIN_BINS // steps) + 1
    span = hi - lo
    if not span > np.float32(num_bins) * np.finfo(np.float32).tiny:
        return lo, hi
    bin_V = np.rint((x_V - lo) * (np.float32(num_bins - 1) / span)).astype(np.int64)
    count_K = np.bincount(bin_V, minlength=num_bins).astype(np.float64)
    bin_K = np.arange(num_bins, dtype=np.float64)
    before_3K = np.zeros((3, num_bins + 1))
    np.cumsum([count_K, count_K * bin_K, count_K * (bin_K * bin_K)], axis=1, out=before_3K[:, 1:])

    ends = range(_COARSE + 1)
    coarse = [
        ((num_bins - 1) * i // _COARSE, (num_bins - 1) * j // _COARSE) for i, j in itertools.combinations(ends, 2)
    ]
    best = (0, num_bins - 1)
    least = _error(before_3K, best, steps)
    for candidate in coarse:
        if (error := _error(before_3K, candidate, steps)) < least:
            least, best = error, candidate
    move = num_bins // (2 * _COARSE)
    while move:
        moved = False
        for by_lo, by_hi in _MOVES:
            candidate = (best[0] + by_lo * move, best[1] + by_hi * move)
            if 0 <= candidate[0] < candidate[1] < num_bins and (error := _error(before_3K, candidate, steps)) < least:
                least, best, moved = error, candidate, True
        if not moved:
            move //= 2
    width = span / np.float32(num_bins - 1)
    low = lo + np.float32(best[0]) * width if best[0] else lo
    return low, (lo + np.float32(best[1]) * width if best[1] < num_bins - 1 else hi)


def _error(before_3K: Sums, ends: tuple[int, int], steps: int) -> float:
    """Squared error, in bins, of rounding every value to the nearest of the even levels between two bins."""
    lo, hi = ends
    step = (hi - lo) / steps
    place_L = lo + np.arange(steps + 1) * step
    edge_L = np.empty(steps + 2, np.int64)
    edge_L[0], edge_L[-1] = 0, before_3K.shape[1] - 1
    edge_L[1:-1] = (place_L[:-1] + step * 0.5).astype(np.int64) + 1
    count_L, first_L, second_L = np.diff(before_3K[:, edge_L], axis=1)
    error_L = (second_L - 2.0 * place_L * first_L) + place_L * place_L * count_L
    return float(np.cumsum(error_L)[-1])  # from the first level on: np.sum takes pairs
