"""`numpy.float16`, compiled: same functions, same bytes."""

from __future__ import annotations

from tierline.kernels.library import Buffer, binder, pointer, readable
from tierline.kernels.numpy import float16 as oracle
from tierline.kernels.numpy.float16 import Floats, row_bytes

__all__ = ["decode", "encode", "row_bytes"]

_compiled = binder(
    tl_float16_encode="ppn",
    tl_float16_decode="ppn",
)


def encode(x_BV: Floats) -> bytes:
    """See `numpy.float16.encode`."""
    lib = _compiled()
    if lib is None or x_BV.size == 0:
        return oracle.encode(x_BV)
    x_BV = readable(x_BV)
    out = Buffer(row_bytes(x_BV.size))
    lib.tl_float16_encode(pointer(x_BV), out.data, x_BV.size)
    return out.data


def decode(data: bytes, x_BV: Floats) -> None:
    """See `numpy.float16.decode`."""
    lib = _compiled()
    if lib is None or x_BV.size == 0:
        oracle.decode(data, x_BV)
        return
    lib.tl_float16_decode(data, pointer(x_BV), x_BV.size)
