"""`numpy.bitplane`, compiled: same functions, same bytes."""

from __future__ import annotations

from functools import lru_cache

from tierline.kernels.library import Counts, as_rows, binder, counts, pointer, readable
from tierline.kernels.numpy import bitplane as oracle
from tierline.kernels.numpy.bitplane import Floats, row_bytes

__all__ = ["decode", "encode", "row_bytes"]

_compiled = binder(tl_bitplane_encode_cpu="!ppnn:i", tl_bitplane_decode_cpu="!ppnn:i")


@lru_cache(maxsize=256)
def _counts(shape: tuple[int, ...]) -> Counts | None:
    return counts(shape, row_bytes)


def encode(x_BV: Floats) -> bytes:
    """See `numpy.bitplane.encode`; `x_BV` may have more axes, rows lie along the first."""
    lib, shape = _compiled(), _counts(x_BV.shape)
    if lib is None or shape is None:
        return oracle.encode(as_rows(x_BV))
    num_rows, num_values, num_bytes, fresh = shape
    x_BV, data = readable(x_BV), fresh(num_bytes)
    if lib.tl_bitplane_encode_cpu(pointer(x_BV), data, num_rows, num_values):
        raise ValueError("a value is NaN, which has no sign")
    return data


def decode(data: bytes, x_BV: Floats) -> None:
    """See `numpy.bitplane.decode`; `x_BV` must be contiguous, and may have more axes."""
    lib, shape = _compiled(), _counts(x_BV.shape)
    if lib is None or shape is None:
        oracle.decode(data, as_rows(x_BV))
        return
    if lib.tl_bitplane_decode_cpu(data, pointer(x_BV), shape.num_rows, shape.num_values):
        raise ValueError("padding bits are set")
