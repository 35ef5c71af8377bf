"""`numpy.bitplane`, compiled: same functions, same bytes."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import numpy as np

from tierline.kernels.library import Buffer, address, bind
from tierline.kernels.numpy import bitplane as oracle
from tierline.kernels.numpy.bitplane import Floats, row_bytes

__all__ = ["decode", "encode", "row_bytes"]


def encode(x_BV: Floats) -> bytes:
    """See `numpy.bitplane.encode`."""
    lib = _compiled()
    if lib is None or x_BV.size == 0:
        return oracle.encode(x_BV)
    num_rows, num_values = x_BV.shape
    x_BV = np.ascontiguousarray(x_BV)
    out, bad = Buffer(num_rows * row_bytes(num_values)), np.zeros(1, np.int32)
    lib.tl_bitplane_encode(address(x_BV), out.address, address(bad), num_rows, num_values)
    if bad[0]:
        raise ValueError("a value is NaN, which has no sign")
    return out.data


def decode(data: bytes, x_BV: Floats) -> None:
    """See `numpy.bitplane.decode`; `x_BV` must be contiguous."""
    lib = _compiled()
    if lib is None or x_BV.size == 0:
        oracle.decode(data, x_BV)
        return
    bad = np.zeros(1, np.int32)
    lib.tl_bitplane_decode(data, address(x_BV), address(bad), *x_BV.shape)
    if bad[0]:
        raise ValueError("padding bits are set")


@cache
def _compiled() -> SimpleNamespace | None:
    return bind(
        tl_bitplane_encode="pppnn",
        tl_bitplane_decode="pppnn",
    )
