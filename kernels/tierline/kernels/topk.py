"""`numpy.topk`, compiled where it costs: same functions, same bytes.

The k-th largest magnitude is found by histograms of its digits, narrower ones in short rows, which sorts nothing.
"""

from __future__ import annotations

import numpy as np

from tierline.kernels.library import binder, pointer, readable
from tierline.kernels.numpy import topk as oracle
from tierline.kernels.numpy.sparse_bitmap import Bytes, Floats, row_bytes
from tierline.kernels.numpy.topk import BAD_VALUE, pack_positions, positions_bytes, unpack_positions

__all__ = ["choose", "pack_positions", "positions_bytes", "unpack_positions"]

_compiled = binder(tl_topk_choose_cpu="ppnnn:i")


def choose(x_BV: Floats, num_chosen: int) -> Bytes:
    """See `numpy.topk.choose`."""
    lib = _compiled()
    if lib is None or x_BV.size == 0:
        return oracle.choose(x_BV, num_chosen)
    x_BV = readable(x_BV)
    num_rows, num_values = x_BV.shape
    bitmap_BP = np.empty((num_rows, row_bytes(num_values)), np.uint8)
    if lib.tl_topk_choose_cpu(pointer(x_BV), pointer(bitmap_BP), num_rows, num_values, num_chosen):
        raise ValueError(BAD_VALUE.format(num_chosen))
    return bitmap_BP
