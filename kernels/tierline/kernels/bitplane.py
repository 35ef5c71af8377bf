"""`numpy.bitplane`, compiled: same functions, same bytes."""

from __future__ import annotations

from ctypes import byref, c_int

import numpy as np

from tierline.kernels.library import address, binder, new_bytes
from tierline.kernels.numpy import bitplane as oracle
from tierline.kernels.numpy.bitplane import Floats, row_bytes

__all__ = ["decode", "encode", "row_bytes"]

_compiled = binder(tl_bitplane_encode="pppnn", tl_bitplane_decode="pppnn")


def encode(x_BV: Floats) -> bytes:
    """See `numpy.bitplane.encode`."""
    lib = _compiled()
    if lib is None or x_BV.size == 0:
        return oracle.encode(x_BV)
    num_rows, num_values = x_BV.shape
    x_BV = np.ascontiguousarray(x_BV)
    data, bad = new_bytes(num_rows * ((num_values + 7) // 8)), c_int()
    lib.tl_bitplane_encode(address(x_BV), data, byref(bad), num_rows, num_values)
    if bad:
        raise ValueError("a value is NaN, which has no sign")
    return data


def decode(data: bytes, x_BV: Floats) -> None:
    """See `numpy.bitplane.decode`; `x_BV` must be contiguous."""
    lib = _compiled()
    if lib is None or x_BV.size == 0:
        oracle.decode(data, x_BV)
        return
    num_rows, num_values = x_BV.shape
    bad = c_int()
    lib.tl_bitplane_decode(data, address(x_BV), byref(bad), num_rows, num_values)
    if bad:
        raise ValueError("padding bits are set")
