"""`numpy.float8_e4m3`, compiled: same functions, same bytes."""

from __future__ import annotations

from ctypes import byref, c_int

from tierline.kernels import scaled
from tierline.kernels.library import Buffer, binder, pointer, readable
from tierline.kernels.numpy import float8_e4m3 as oracle
from tierline.kernels.numpy.float8_e4m3 import BAD_VALUE, LARGEST, Floats, row_bytes

__all__ = ["LARGEST", "decode", "encode", "row_bytes"]

_compiled = binder(
    tl_float8_encode="pppn",
    tl_float8_decode="ppn",
    tl_float8_scaled_encode="ppnn",
    tl_float8_scaled_decode="pppnn",
)


def encode(x_BV: Floats, scale: bool = False) -> bytes:
    """See `numpy.float8_e4m3.encode`."""
    lib = _compiled()
    if lib is None or x_BV.size == 0:
        return oracle.encode(x_BV, scale)
    num_rows, num_values = x_BV.shape
    x_BV = readable(x_BV)
    out, bad = Buffer(num_rows * row_bytes(num_values, scale)), c_int()
    if scale:
        scaled.write_at(x_BV, out.address, row_bytes(num_values, scale), LARGEST)
        lib.tl_float8_scaled_encode(pointer(x_BV), out.address, num_rows, num_values)
    else:
        lib.tl_float8_encode(pointer(x_BV), out.address, byref(bad), x_BV.size)
    if bad:
        raise ValueError(BAD_VALUE)
    return out.data


def decode(data: bytes, x_BV: Floats, scale: bool = False) -> None:
    """See `numpy.float8_e4m3.decode`; `x_BV` must be contiguous."""
    lib = _compiled()
    if lib is None or x_BV.size == 0:
        oracle.decode(data, x_BV, scale)
        return
    if not scale:
        lib.tl_float8_decode(data, pointer(x_BV), x_BV.size)
        return
    bad = c_int()
    lib.tl_float8_scaled_decode(data, pointer(x_BV), byref(bad), *x_BV.shape)
    if bad:
        raise ValueError(scaled.BAD_HEADER if bad.value & 1 else "a value behind a scale is NaN")
