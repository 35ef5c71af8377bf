"""`numpy.topk`, compiled where it costs: same functions, same bytes.

The k-th largest magnitude is found by three histograms over 11, 11 and 9 of its bits, which sorts nothing.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import numpy.typing as npt

from tierline.kernels.library import address, binder, readable
from tierline.kernels.numpy import topk as oracle
from tierline.kernels.numpy.sparse_bitmap import Bytes, Floats, row_bytes
from tierline.kernels.numpy.topk import pack_positions, positions_bytes, unpack_positions

__all__ = ["choose", "pack_positions", "positions_bytes", "unpack_positions"]

_BINS = 2048
_SHIFTS = (22, 11, 0)
_INFINITY = 0x7F800000


_compiled = binder(
    tl_topk_histogram="pppnni",
    tl_topk_mark="ppppnn",
)


def choose(x_BV: Floats, num_chosen: int) -> Bytes:
    """See `numpy.topk.choose`."""
    lib = _compiled()
    if lib is None or x_BV.size == 0:
        return oracle.choose(x_BV, num_chosen)
    x_BV = readable(x_BV)
    num_rows, num_values = x_BV.shape
    least_B, num_equal_B, num_wanted_B = _least(lib, x_BV, num_chosen)
    if ((least_B >= _INFINITY) & (num_equal_B > num_wanted_B)).any() or (
        num_chosen < num_values and (least_B > _INFINITY).any()
    ):
        oracle.choose(x_BV, num_chosen)  # raises if what is dropped is not finite
    last_B = np.full(num_rows, num_values, np.int64)
    for b in np.flatnonzero(num_equal_B > num_wanted_B):
        equal = (x_BV[b].view(np.int32) & np.int32(0x7FFFFFFF)) == least_B[b]
        last_B[b] = np.flatnonzero(equal)[num_wanted_B[b] - 1] + 1
    bitmap_BP = np.empty((num_rows, row_bytes(num_values)), np.uint8)
    lib.tl_topk_mark(address(x_BV), address(least_B), address(last_B), address(bitmap_BP), num_rows, num_values)
    return bitmap_BP


def _least(lib: SimpleNamespace, x_BV: Floats, num_chosen: int) -> tuple[npt.NDArray[np.int32], ...]:
    """Of each row the smallest magnitude that is kept, how many have it, and how many of those are kept."""
    num_rows, num_values = x_BV.shape
    found_B = np.zeros(num_rows, np.int32)
    wanted_B = np.full(num_rows, num_chosen, np.int32)
    at_B = np.arange(num_rows)
    for shift in _SHIFTS:
        counts_Bh = np.zeros((num_rows, _BINS), np.int32)
        lib.tl_topk_histogram(address(x_BV), address(found_B), address(counts_Bh), num_rows, num_values, shift)
        from_top_Bh = np.cumsum(counts_Bh[:, ::-1], axis=1)  # how many lie in this bin and those above it
        bin_B = (from_top_Bh < wanted_B[:, None]).sum(axis=1)  # counted from the top
        num_bin_B = counts_Bh[at_B, _BINS - 1 - bin_B]
        wanted_B -= (from_top_Bh[at_B, bin_B] - num_bin_B).astype(np.int32)
        found_B = (found_B << 11 | (_BINS - 1 - bin_B)).astype(np.int32)
    return found_B, num_bin_B, wanted_B
