"""`numpy.sparse_bitmap`, compiled: same functions, same bytes."""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace

import numpy as np

from tierline.kernels.library import Counts as Shape
from tierline.kernels.library import address, binder, counts, pointer, readable
from tierline.kernels.numpy import sparse_bitmap as oracle
from tierline.kernels.numpy.sparse_bitmap import Bytes, Counts, Floats, padding_is_clear, row_bytes

__all__ = ["count", "gather", "mark", "padding_is_clear", "row_bytes", "scatter"]

BLOCK_VALUES = 512
"""Of one independent piece of a row, as in the header."""
SLACK_VALUES = 16
"""Behind gathered values, which kernels write and read but nobody uses."""


_compiled = binder(
    tl_sparse_mark="!ppnn",
    tl_sparse_count="ppnn",
    tl_sparse_gather="ppppnn",
    tl_sparse_scatter="ppppnn",
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
