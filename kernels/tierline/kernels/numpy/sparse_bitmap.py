"""Which values are not zero, a bit each, and those values close together."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]

BAD_LENGTH = "{} bytes of data are not what the bitmaps of {} rows need"


def row_bytes(num_values: int) -> int:
    """Of a bitmap."""
    return (num_values + 7) // 8


def mark(x_BV: Floats) -> Bytes:
    """1 where x is neither +0 nor -0 (so also for NaN), the first value in the most significant bit, padding bits 0."""
    return np.packbits(x_BV != 0, axis=1)


def count(bitmap_BP: Bytes) -> Counts:
    """Set bits of each row, padding included."""
    num_set_B: Counts = np.unpackbits(bitmap_BP, axis=1).sum(axis=1, dtype=np.int64)
    return num_set_B


def gather(x_BV: Floats, bitmap_BP: Bytes) -> Floats:
    """Values whose bit is set, row after row, in one line."""
    chosen: Floats = x_BV[_bits(bitmap_BP, x_BV.shape[1])]
    return chosen


def scatter(values: Floats, bitmap_BP: Bytes, x_BV: Floats) -> None:
    """Undo `gather` into `x_BV`: +0 where a bit is clear. There must be as many values as set bits."""
    x_BV[...] = 0
    x_BV[_bits(bitmap_BP, x_BV.shape[1])] = values


def padding_is_clear(bitmap_BP: Bytes, num_values: int) -> bool:
    num_padding = -num_values % 8
    return not (num_padding and np.bitwise_and(bitmap_BP[:, -1], (1 << num_padding) - 1).any())


def walk(data: bytes, num_rows: int, num_values: int, size: Callable[[int], int]) -> tuple[Counts, Counts]:
    """Where each row starts and how many bits its bitmap has set; `size(n)` bytes for n > 0 values follow a bitmap.

    Raises ValueError unless the rows end where the data does.
    """
    starts_B, number_B = np.zeros((2, num_rows), np.int64)
    at, num_bytes, size = 0, row_bytes(num_values), cache(size)
    for b in range(num_rows):
        bitmap = data[at : at + num_bytes]
        if len(bitmap) < num_bytes:
            break
        starts_B[b], number_B[b] = at, int.from_bytes(bitmap, "little").bit_count()
        at += num_bytes + (size(int(number_B[b])) if number_B[b] else 0)
    else:
        if at == len(data):
            return starts_B, number_B
    raise ValueError(BAD_LENGTH.format(len(data), num_rows))


def place(source: Bytes, to: Bytes, from_R: Counts, to_R: Counts, length_R: Counts) -> None:
    """Runs of bytes by their offsets and lengths; both arrays contiguous and flat."""
    for at, there, length in zip(from_R.tolist(), to_R.tolist(), length_R.tolist(), strict=True):
        to[there : there + length] = source[at : at + length]


def _bits(bitmap_BP: Bytes, num_values: int) -> npt.NDArray[np.bool_]:
    return np.unpackbits(bitmap_BP, axis=1, count=num_values).view(np.bool_)
