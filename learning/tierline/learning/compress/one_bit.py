"""One bit per value: above zero or not, and the mean of each of the two parts, for every row of the tensor.

    C(x)_ij = mean of row i's positive values if x_ij > 0, else mean of row i's others

Rows are the indices of axis 0, all values of a vector one row. Seide, Fu, Droppo, Li, Yu, "1-Bit Stochastic Gradient
Descent and its Application to Data-Parallel Distributed Training of Speech DNNs", Interspeech 2014, section 3.
There the memory of what was lost is part of the method: wrap it in `error_feedback`. Deviations: the paper's centres
belong to columns of its weight matrices; rows here, as most layouts hold one output's weights in a row.
Sends one bit per value and two float32 per row. Remembers nothing.
Status: partial (two centres as means of the parts, and their least squared error; the paper's text was not at hand).
"""

from __future__ import annotations

import numpy as np

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
    squares,
)
from tierline.learning.compressor import Compressed, Factors, Floats, Promise


class OneBit(Stateless):
    """Compressor `one_bit`."""

    promise = Promise(contracts=True)

    def compress(self, key: Key, update: Array | Factors) -> Compressed:
        x = checked(key, update)
        x_RV = x.reshape(_rows(x.shape))
        above_RV = x_RV > 0
        signs_RV = np.where(above_RV, np.float32(1), np.float32(-1))
        centres_R2 = np.stack([_means(x_RV, ~above_RV), _means(x_RV, above_RV)], axis=1)
        return seal(key, x.shape, {"signs": coded(signs_RV, "bitplane"), "centres": coded(centres_R2, "raw")})

    def expand(self, key: Key, message: Compressed, side: Array | None = None) -> Floats:
        signs, centres = opened(key, message, "signs", "centres")
        shape = _rows(message.shape)
        signs_RV = decoded(signs, "bitplane", shape)
        centres_R2 = decoded(centres, "raw", (shape[0], 2))
        return restored(key, message, np.where(signs_RV > 0, centres_R2[:, 1:], centres_R2[:, :1]))

    def expected_error(self, update: Array | Factors) -> float:
        x = array(update)
        x_RV = x.reshape(_rows(x.shape)).astype(np.float64)
        explained = 0.0
        for part_RV in (x_RV > 0, x_RV <= 0):
            explained += float((part_RV.sum(axis=1) * _means(x_RV, part_RV).astype(np.float64) ** 2).sum())
        # Centres are rounded to float32.
        return squares(x) * (1 + 1e-6) - explained

    def max_bytes(self, update: Array | Factors) -> int:
        shape = _rows(update.shape)
        return message_bytes(coded_bytes("bitplane", shape) + coded_bytes("raw", (shape[0], 2)))


def _rows(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[0], int(np.prod(shape[1:]))) if len(shape) > 1 else (1, int(np.prod(shape)))


def _means(x_RV: Array, part_RV: Array) -> Floats:
    """Mean of each row's part, 0 where it is empty."""
    sums_R = np.where(part_RV, x_RV, 0).sum(axis=1, dtype=np.float64)
    means_R: Floats = (sums_R / np.maximum(1, part_RV.sum(axis=1))).astype(np.float32)
    return means_R
