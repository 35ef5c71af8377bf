"""`zlib.crc32`, four times as fast for what is long, on processors that multiply without carries."""

from __future__ import annotations

import zlib
from ctypes import create_string_buffer

import numpy as np

from tierline.kernels.library import address, binder

_compiled = binder(tl_crc32_fold="pnp:i")
_FROM, _BLOCK = 1 << 16, 64
"""Bytes from which on a call of the library pays; and what it takes at once."""
_ZERO = 0xFFFFFFFF
"""zlib inverts what it starts from: this starts it from nothing."""


def crc32(data: bytes | memoryview) -> int:
    """Of bytes one after the other in memory."""
    num_blocks = len(data) // _BLOCK
    if len(data) < _FROM or (lib := _compiled()) is None:
        return zlib.crc32(data)
    held, folded = np.frombuffer(data, np.uint8), create_string_buffer(16)
    if not lib.tl_crc32_fold(address(held), num_blocks, folded):
        return zlib.crc32(data)
    return zlib.crc32(memoryview(data)[num_blocks * _BLOCK :], zlib.crc32(folded.raw, _ZERO))
