"""`numpy.affine`, compiled: same functions, same bytes."""

from __future__ import annotations

from ctypes import c_longlong, c_ulonglong
from functools import lru_cache

import numpy as np

from tierline.kernels.library import Counts, address, as_rows, binder, counts, pointer, readable
from tierline.kernels.numpy import affine as oracle
from tierline.kernels.numpy.affine import CLIPS, HEADER_BYTES, LIMIT, Floats, check_options, max_scale, row_bytes
from tierline.kernels.numpy.affine_clip import num_dropped
from tierline.kernels.numpy.sparse_bitmap import Bytes
from tierline.kernels.numpy.sparse_bitmap import Counts as Numbers

__all__ = [
    "CLIPS",
    "HEADER_BYTES",
    "LIMIT",
    "check_options",
    "decode",
    "decode_runs",
    "encode",
    "encode_runs",
    "max_scale",
    "num_dropped",
    "row_bytes",
]

_compiled = binder(
    tl_affine_encode_cpu="!ppnniinnu:i",
    tl_affine_decode_cpu="!ppnnii:i",
    tl_affine_encode_runs_cpu="pppniiiu:i",
    tl_affine_decode_runs_cpu="pppni:i",
)
_BAD_VALUE = "a value is NaN, infinite or above 2^126 in magnitude"
_BAD_BYTES = ("", "a row's header holds no lo and scale that an encoder writes", "padding bits are set")
_CLIP_NUMBERS = {name: number for number, name in enumerate(CLIPS)}
_count, _seed = lru_cache(maxsize=256)(c_longlong), lru_cache(maxsize=256)(c_ulonglong)


@lru_cache(maxsize=256)
def _counts(shape: tuple[int, ...], bits: int) -> Counts | None:
    return counts(shape, lambda num_values: row_bytes(num_values, bits))


def encode(
    x_BV: Floats, bits: int = 8, clip: str = "minmax", dropped: int = 0, num_streams: int = 0, seed: int = 0
) -> bytes:
    """See `numpy.affine.encode`; `x_BV` may have more axes, rows lie along the first."""
    lib, shape = _compiled(), _counts(x_BV.shape, bits)
    if lib is None or shape is None:
        return oracle.encode(as_rows(x_BV), bits, clip, dropped, num_streams, seed)
    num_rows, num_values, num_bytes, fresh = shape
    x_BV, data = readable(x_BV), fresh(num_bytes)
    options = _CLIP_NUMBERS[clip], _count(dropped), _count(num_streams), _seed(seed)
    if lib.tl_affine_encode_cpu(pointer(x_BV), data, num_rows, num_values, bits, *options):
        raise ValueError(_BAD_VALUE)
    return data


def decode(data: bytes, x_BV: Floats, bits: int = 8, fresh: bool = False) -> None:
    """See `numpy.affine.decode`; `x_BV` must be contiguous, may have more axes, and is `fresh` where never touched."""
    lib, shape = _compiled(), _counts(x_BV.shape, bits)
    if lib is None or shape is None:
        oracle.decode(data, as_rows(x_BV), bits)
        return
    bad = lib.tl_affine_decode_cpu(data, pointer(x_BV), shape.num_rows, shape.num_values, bits, fresh)
    if bad:
        raise ValueError(_BAD_BYTES[bad & -bad])


def encode_runs(
    values: Floats,
    number_B: Numbers,
    data: Bytes,
    place_B: Numbers,
    bits: int,
    clip: str,
    percent: float,
    stochastic: bool,
    seed: int,
) -> bool:
    """Code rows of so many of the values each, in one call, to these places in `data`; False where NumPy serves."""
    lib = _compiled()
    if lib is None:
        return False
    dropped_B = np.minimum((number_B * (100.0 - percent) / 200.0).astype(np.int64), (number_B - 1) // 2)
    run_B3 = np.stack([place_B, number_B, dropped_B], axis=1)
    places = address(values), address(data), address(run_B3)
    if lib.tl_affine_encode_runs_cpu(*places, len(run_B3), bits, _CLIP_NUMBERS[clip], stochastic, seed):
        raise ValueError(_BAD_VALUE)
    return True


def decode_runs(data: bytes, place_B: Numbers, number_B: Numbers, values: Floats, bits: int) -> bool:
    """The reverse of `encode_runs`. Raises ValueError as `decode` does; False where NumPy serves."""
    lib = _compiled()
    if lib is None:
        return False
    run_B3 = np.stack([place_B, number_B, np.zeros_like(number_B)], axis=1)
    bad = lib.tl_affine_decode_runs_cpu(data, address(values), address(run_B3), len(run_B3), bits)
    if bad:
        raise ValueError(_BAD_BYTES[bad & -bad])
    return True
