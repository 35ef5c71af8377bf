"""`numpy.dithered`, compiled: same functions, same bytes."""

from __future__ import annotations

from ctypes import byref, c_int

import numpy as np

from tierline.kernels import radix, scaled
from tierline.kernels.library import Buffer, address, binder, pointer, readable
from tierline.kernels.numpy import dithered as oracle
from tierline.kernels.numpy.dithered import MAX_LEVELS, Floats, row_bytes

__all__ = ["MAX_LEVELS", "decode", "encode", "row_bytes"]

_compiled = binder(
    tl_dithered_symbols="pppnnniu",
    tl_dithered_values="ppppnnniu",
)


def encode(x_BV: Floats, levels: int, seed: int) -> bytes:
    """See `numpy.dithered.encode`."""
    lib = _compiled()
    if lib is None or x_BV.size == 0:
        return oracle.encode(x_BV, levels, seed)
    x_BV = readable(x_BV)
    shape, stride, most = x_BV.shape, row_bytes(x_BV.shape[1], levels), levels // 2
    out, symbol_BV = Buffer(shape[0] * stride), np.empty(shape, np.uint8)
    scaled.write_at(x_BV, out.address, stride, most)
    lib.tl_dithered_symbols(pointer(x_BV), out.address, pointer(symbol_BV), *shape, stride, most, seed)
    radix.pack_at(symbol_BV, out.address + scaled.HEADER_BYTES, stride, levels)
    return out.data


def decode(data: bytes, x_BV: Floats, levels: int, seed: int) -> None:
    """See `numpy.dithered.decode`; `x_BV` must be contiguous."""
    lib = _compiled()
    if lib is None or x_BV.size == 0:
        oracle.decode(data, x_BV, levels, seed)
        return
    shape, stride = x_BV.shape, row_bytes(x_BV.shape[1], levels)
    symbol_BV, bad = np.empty(shape, np.uint8), c_int()
    place = address(np.frombuffer(data, np.uint8))
    radix.unpack_at(place + scaled.HEADER_BYTES, stride, symbol_BV, levels)
    lib.tl_dithered_values(pointer(symbol_BV), place, pointer(x_BV), byref(bad), *shape, stride, levels // 2, seed)
    if bad:
        raise ValueError(scaled.BAD_HEADER)
