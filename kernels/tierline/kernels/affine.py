"""`numpy.affine`, compiled: same functions, same bytes."""

from __future__ import annotations

from ctypes import c_longlong, c_ulonglong
from functools import lru_cache

from tierline.kernels.library import Counts, as_rows, binder, counts, pointer, readable
from tierline.kernels.numpy import affine as oracle
from tierline.kernels.numpy.affine import CLIPS, HEADER_BYTES, LIMIT, Floats, max_scale, row_bytes
from tierline.kernels.numpy.affine_clip import num_dropped

__all__ = ["CLIPS", "HEADER_BYTES", "LIMIT", "decode", "encode", "max_scale", "num_dropped", "row_bytes"]

_compiled = binder(tl_affine_encode_cpu="!ppnniinnu:i", tl_affine_decode_cpu="!ppnnii:i")
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
        raise ValueError("a value is NaN, infinite or above 2^126 in magnitude")
    return data


def decode(data: bytes, x_BV: Floats, bits: int = 8, fresh: bool = False) -> None:
    """See `numpy.affine.decode`; `x_BV` must be contiguous, may have more axes, and is `fresh` where never touched."""
    lib, shape = _compiled(), _counts(x_BV.shape, bits)
    if lib is None or shape is None:
        oracle.decode(data, as_rows(x_BV), bits)
        return
    bad = lib.tl_affine_decode_cpu(data, pointer(x_BV), shape.num_rows, shape.num_values, bits, fresh)
    if bad:
        raise ValueError(
            "padding bits are set" if bad == 2 else "a row's header holds no lo and scale that an encoder writes"
        )
