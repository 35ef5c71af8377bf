"""`numpy.bfloat16`, compiled: same functions, same bytes."""

from __future__ import annotations

from functools import lru_cache

from tierline.kernels.library import Counts, binder, counts, pointer, readable
from tierline.kernels.numpy import bfloat16 as oracle
from tierline.kernels.numpy.bfloat16 import Floats, row_bytes

__all__ = ["decode", "encode", "row_bytes"]

_compiled = binder(tl_bfloat16_encode="!ppn", tl_bfloat16_decode="!ppn")


@lru_cache(maxsize=256)
def _counts(num_values: int) -> Counts | None:
    return counts((1, num_values), row_bytes)


def encode(x_BV: Floats) -> bytes:
    """See `numpy.bfloat16.encode`."""
    lib, size = _compiled(), _counts(x_BV.size)
    if lib is None or size is None:
        return oracle.encode(x_BV)
    x_BV, data = readable(x_BV), size.fresh(size.num_bytes)
    lib.tl_bfloat16_encode(pointer(x_BV), data, size.num_values)
    return data


def decode(data: bytes, x_BV: Floats) -> None:
    """See `numpy.bfloat16.decode`; `x_BV` must be contiguous."""
    lib, size = _compiled(), _counts(x_BV.size)
    if lib is None or size is None:
        oracle.decode(data, x_BV)
        return
    lib.tl_bfloat16_decode(data, pointer(x_BV), size.num_values)
