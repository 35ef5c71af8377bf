"""`numpy.sparse_bitmap`, compiled: same functions, same bytes."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import SimpleNamespace

import numpy as np

from tierline.kernels.library import Counts as Shape
from tierline.kernels.library import address, binder, counts, pointer, readable
from tierline.kernels.numpy import sparse_bitmap as oracle
from tierline.kernels.numpy.sparse_bitmap import BAD_LENGTH, Bytes, Counts, Floats, padding_is_clear, row_bytes

__all__ = ["count", "gather", "mark", "padding_is_clear", "place", "row_bytes", "scatter", "walk"]

BLOCK_VALUES = 512
"""Of one independent piece of a row, as in the header."""
SLACK_VALUES = 16
"""Behind gathered values, which kernels write and read but nobody uses."""


_compiled = binder(
    tl_sparse_mark="!ppnn",
    tl_sparse_count="ppnn",
    tl_sparse_gather="ppppnn",
    tl_sparse_scatter="ppppnn",
    tl_sparse_walk_cpu="pnppnnnn:i",
    tl_rows_place="pppn",
)


@lru_cache(maxsize=256)
def _counts(shape: tuple[int, ...]) -> Shape | None:
    return counts(shape, row_bytes)


def mark(x_BV: Floats) -> Bytes:
    """See `numpy.sparse_bitmap.mark`."""
    lib, shape = _compiled(), _counts(x_BV.shape)
    if lib is None or shape is None:
        return oracle.mark(x_BV)
    x_BV = readable(x_BV)
    bitmap_BP = np.empty((len(x_BV), shape.num_bytes // len(x_BV)), np.uint8)
    lib.tl_sparse_mark(pointer(x_BV), pointer(bitmap_BP), shape.num_rows, shape.num_values)
    return bitmap_BP


def count(bitmap_BP: Bytes) -> Counts:
    """See `numpy.sparse_bitmap.count`."""
    lib = _compiled()
    if lib is None or bitmap_BP.size == 0:
        return oracle.count(bitmap_BP)
    num_set_B: Counts = _block_counts(lib, np.ascontiguousarray(bitmap_BP)).sum(axis=1)
    return num_set_B


def gather(x_BV: Floats, bitmap_BP: Bytes) -> Floats:
    """See `numpy.sparse_bitmap.gather`."""
    lib = _compiled()
    if lib is None or x_BV.size == 0:
        return oracle.gather(x_BV, bitmap_BP)
    x_BV, bitmap_BP = readable(x_BV), np.ascontiguousarray(bitmap_BP)
    starts, num_chosen = _starts(lib, bitmap_BP)
    values = np.empty(num_chosen + SLACK_VALUES, np.float32)
    lib.tl_sparse_gather(address(x_BV), address(bitmap_BP), address(starts), address(values), *x_BV.shape)
    return values[:num_chosen]


def scatter(values: Floats, bitmap_BP: Bytes, x_BV: Floats) -> None:
    """See `numpy.sparse_bitmap.scatter`; `x_BV` must be contiguous, padding bits clear."""
    lib = _compiled()
    if lib is None or x_BV.size == 0:
        oracle.scatter(values, bitmap_BP, x_BV)
        return
    bitmap_BP = np.ascontiguousarray(bitmap_BP)
    starts, num_chosen = _starts(lib, bitmap_BP)
    if num_chosen != len(values):
        raise ValueError(f"{len(values)} values for {num_chosen} set bits")
    padded = np.zeros(num_chosen + SLACK_VALUES, np.float32)
    padded[:num_chosen] = values
    lib.tl_sparse_scatter(address(padded), address(bitmap_BP), address(starts), address(x_BV), *x_BV.shape)


def walk(
    data: bytes,
    num_rows: int,
    num_values: int,
    size: Callable[[int], int],
    law: tuple[int, int] | None = None,
) -> tuple[Counts, Counts]:
    """See `numpy.sparse_bitmap.walk`; compiled where `law` says that size(n) is law[0] + ceil(n * law[1] / 8)."""
    lib = _compiled()
    if lib is None or law is None:
        return oracle.walk(data, num_rows, num_values, size)
    starts_B, number_B = np.empty((2, num_rows), np.int64)
    places = address(starts_B), address(number_B)
    if lib.tl_sparse_walk_cpu(data, len(data), *places, num_rows, row_bytes(num_values), *law):
        raise ValueError(BAD_LENGTH.format(len(data), num_rows))
    return starts_B, number_B


def place(source: Bytes, to: Bytes, from_R: Counts, to_R: Counts, length_R: Counts) -> None:
    """See `numpy.sparse_bitmap.place`."""
    lib = _compiled()
    if lib is None:
        oracle.place(source, to, from_R, to_R, length_R)
        return
    table_R3 = np.stack([from_R, to_R, length_R], axis=1)
    lib.tl_rows_place(address(source), address(to), address(table_R3), len(table_R3))


def _starts(lib: SimpleNamespace, bitmap_BP: Bytes) -> tuple[Counts, int]:
    """Where each block's values start, and how many values there are."""
    counts = _block_counts(lib, bitmap_BP).reshape(-1)
    ends = np.cumsum(counts)
    return ends - counts, int(ends[-1])


def _block_counts(lib: SimpleNamespace, bitmap_BP: Bytes) -> Counts:
    num_rows, num_bytes = bitmap_BP.shape
    counts_BK = np.empty((num_rows, -(-num_bytes * 8 // BLOCK_VALUES)), np.int64)
    lib.tl_sparse_count(address(bitmap_BP), address(counts_BK), num_rows, 8 * num_bytes)
    return counts_BK
