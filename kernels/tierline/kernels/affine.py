"""`numpy.affine`, compiled: same functions, same bytes."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import numpy as np

from tierline.kernels.library import Buffer, address, bind
from tierline.kernels.numpy import affine as oracle
from tierline.kernels.numpy.affine import HEADER_BYTES, LIMIT, Floats, max_scale, row_bytes

__all__ = ["HEADER_BYTES", "LIMIT", "decode", "encode", "max_scale", "row_bytes"]


def encode(x_BV: Floats, bits: int = 8) -> bytes:
    """See `numpy.affine.encode`."""
    lib = _compiled()
    if lib is None or x_BV.size == 0:
        return oracle.encode(x_BV, bits)
    num_rows, num_values = x_BV.shape
    x_BV = np.ascontiguousarray(x_BV)
    keys_B2 = np.tile(np.array([2**31 - 1, -(2**31)], np.int32), (num_rows, 1))
    out, bad = Buffer(num_rows * row_bytes(num_values, bits)), np.zeros(1, np.int32)
    lib.tl_affine_range(address(x_BV), address(keys_B2), num_rows, num_values)
    lib.tl_affine_header(address(keys_B2), out.address, address(bad), num_rows, num_values, bits)
    if bad[0]:
        raise ValueError("a value is NaN, infinite or above 2^126 in magnitude")
    lib.tl_affine_codes(address(x_BV), out.address, num_rows, num_values, bits)
    return out.data


def decode(data: bytes, x_BV: Floats, bits: int = 8) -> None:
    """See `numpy.affine.decode`; `x_BV` must be contiguous."""
    lib = _compiled()
    if lib is None or x_BV.size == 0:
        oracle.decode(data, x_BV, bits)
        return
    bad = np.zeros(1, np.int32)
    lib.tl_affine_decode(data, address(x_BV), address(bad), *x_BV.shape, bits)
    if bad[0]:
        raise ValueError(
            "padding bits are set" if bad[0] == 2 else "a row's header holds no lo and scale that an encoder writes"
        )


@cache
def _compiled() -> SimpleNamespace | None:
    return bind(
        tl_affine_range="ppnn",
        tl_affine_header="pppnni",
        tl_affine_codes="ppnni",
        tl_affine_decode="pppnni",
    )
