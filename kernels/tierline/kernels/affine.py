"""`numpy.affine`, compiled: same functions, same bytes."""

from __future__ import annotations

from tierline.kernels.library import ZEROED_BYTES, as_rows, binder, pointer, readable, uncleared
from tierline.kernels.numpy import affine as oracle
from tierline.kernels.numpy.affine import CLIPS, HEADER_BYTES, LIMIT, Floats, max_scale, row_bytes
from tierline.kernels.numpy.affine_clip import num_dropped

__all__ = ["CLIPS", "HEADER_BYTES", "LIMIT", "decode", "encode", "max_scale", "num_dropped", "row_bytes"]

_compiled = binder(tl_affine_encode_cpu="ppnniinnu:i", tl_affine_decode_cpu="ppnnii:i")
_CLIP_NUMBERS = {name: number for number, name in enumerate(CLIPS)}


def encode(
    x_BV: Floats, bits: int = 8, clip: str = "minmax", dropped: int = 0, num_streams: int = 0, seed: int = 0
) -> bytes:
    """See `numpy.affine.encode`; `x_BV` may have more axes, rows lie along the first."""
    lib = _compiled()
    size = x_BV.size
    if lib is None or size == 0:
        return oracle.encode(as_rows(x_BV), bits, clip, dropped, num_streams, seed)
    num_rows = x_BV.shape[0]
    num_values = size // num_rows
    x_BV = readable(x_BV)
    num_bytes = num_rows * (HEADER_BYTES + (num_values * bits + 7) // 8)
    data: bytes = bytes(num_bytes) if num_bytes <= ZEROED_BYTES else uncleared(None, num_bytes)
    number = _CLIP_NUMBERS[clip]
    if lib.tl_affine_encode_cpu(pointer(x_BV), data, num_rows, num_values, bits, number, dropped, num_streams, seed):
        raise ValueError("a value is NaN, infinite or above 2^126 in magnitude")
    return data


def decode(data: bytes, x_BV: Floats, bits: int = 8, fresh: bool = False) -> None:
    """See `numpy.affine.decode`; `x_BV` must be contiguous, may have more axes, and is `fresh` where never touched."""
    lib = _compiled()
    size = x_BV.size
    if lib is None or size == 0:
        oracle.decode(data, as_rows(x_BV), bits)
        return
    num_rows = x_BV.shape[0]
    bad = lib.tl_affine_decode_cpu(data, pointer(x_BV), num_rows, size // num_rows, bits, fresh)
    if bad:
        raise ValueError(
            "padding bits are set" if bad == 2 else "a row's header holds no lo and scale that an encoder writes"
        )
