"""`numpy.bitplane`, compiled: same functions, same bytes."""

from __future__ import annotations

from tierline.kernels.library import ZEROED_BYTES, as_rows, binder, pointer, readable, uncleared
from tierline.kernels.numpy import bitplane as oracle
from tierline.kernels.numpy.bitplane import Floats, row_bytes

__all__ = ["decode", "encode", "row_bytes"]

_compiled = binder(tl_bitplane_encode_cpu="ppnn:i", tl_bitplane_decode_cpu="ppnn:i")


def encode(x_BV: Floats) -> bytes:
    """See `numpy.bitplane.encode`; `x_BV` may have more axes, rows lie along the first."""
    lib = _compiled()
    size = x_BV.size
    if lib is None or size == 0:
        return oracle.encode(as_rows(x_BV))
    num_rows = x_BV.shape[0]
    num_values = size // num_rows
    x_BV = readable(x_BV)
    num_bytes = num_rows * ((num_values + 7) // 8)
    data: bytes = bytes(num_bytes) if num_bytes <= ZEROED_BYTES else uncleared(None, num_bytes)
    if lib.tl_bitplane_encode_cpu(pointer(x_BV), data, num_rows, num_values):
        raise ValueError("a value is NaN, which has no sign")
    return data


def decode(data: bytes, x_BV: Floats) -> None:
    """See `numpy.bitplane.decode`; `x_BV` must be contiguous, and may have more axes."""
    lib = _compiled()
    size = x_BV.size
    if lib is None or size == 0:
        oracle.decode(data, as_rows(x_BV))
        return
    num_rows = x_BV.shape[0]
    if lib.tl_bitplane_decode_cpu(data, pointer(x_BV), num_rows, size // num_rows):
        raise ValueError("padding bits are set")
