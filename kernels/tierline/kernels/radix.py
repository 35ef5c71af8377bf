"""`numpy.radix`, compiled: same functions, same bytes."""

from __future__ import annotations

from ctypes import byref, c_int

import numpy as np

from tierline.kernels.library import Buffer, address, binder, pointer, readable
from tierline.kernels.numpy import radix as oracle
from tierline.kernels.numpy.radix import DTYPES, MAX_LEVELS, Values, fits, layout, row_bytes

__all__ = ["DTYPES", "MAX_LEVELS", "fits", "layout", "pack", "pack_at", "row_bytes", "unpack", "unpack_at"]

_ENTRIES = {
    np.dtype(np.uint8): "u8",
    np.dtype(np.int8): "u8",
    np.dtype(np.uint16): "u16",
    np.dtype(np.uint32): "u32",
    np.dtype(np.int32): "u32",
    np.dtype(np.float32): "f32",
}

_compiled = binder(
    **{f"tl_radix_{way}_{name}": "pppnnnniiii" for way in ("pack", "unpack") for name in set(_ENTRIES.values())}
)


def pack(x_BV: Values, levels: int, low: int = 0) -> bytes:
    """See `numpy.radix.pack`."""
    if _compiled() is None or x_BV.size == 0:
        return oracle.pack(x_BV, levels, low)
    stride = row_bytes(x_BV.shape[1], levels)
    out = Buffer(len(x_BV) * stride)
    pack_at(readable(x_BV), out.address, stride, levels, low)
    return out.data


def unpack(data: bytes, x_BV: Values, levels: int, low: int = 0) -> None:
    """See `numpy.radix.unpack`; `x_BV` must be contiguous."""
    if _compiled() is None or x_BV.size == 0:
        oracle.unpack(data, x_BV, levels, low)
        return
    held = np.frombuffer(data, np.uint8)
    unpack_at(address(held), row_bytes(x_BV.shape[1], levels), x_BV, levels, low)


def pack_at(x_BV: Values, place: int, stride: int, levels: int, low: int = 0) -> None:
    """Pack contiguous rows to addresses `stride` bytes apart: only where the library is there."""
    bad, shape = c_int(), x_BV.shape
    entry = getattr(_compiled(), f"tl_radix_pack_{_ENTRIES[x_BV.dtype]}")
    entry(pointer(x_BV), place, byref(bad), *shape, stride, *layout(shape[1], levels), low, levels)
    if bad:
        raise ValueError(f"a value is not an integer from {low} to {low + levels - 1}")


def unpack_at(place: int, stride: int, x_BV: Values, levels: int, low: int = 0) -> None:
    """Unpack contiguous rows from addresses `stride` bytes apart: only where the library is there."""
    bad, shape = c_int(), x_BV.shape
    entry = getattr(_compiled(), f"tl_radix_unpack_{_ENTRIES[x_BV.dtype]}")
    entry(place, pointer(x_BV), byref(bad), *shape, stride, *layout(shape[1], levels), low, levels)
    if bad:
        raise ValueError("a word holds more than its digits")
