"""The folded checksum is zlib's, wherever bytes begin and however many they are."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from tierline.kernels.crc32 import crc32
from tierline.kernels.library import library

RNG = np.random.default_rng(9)


@pytest.mark.parametrize("num_bytes", [0, 5, 65_535, 65_536, 65_537, 65_599, 65_600, 200_003])
def test_it_is_the_sum_that_zlib_makes(num_bytes: int) -> None:
    if library(wait=True) is None:
        pytest.skip("no C++ compiler")
    data = RNG.bytes(num_bytes + 3)
    for start in range(4):
        view = memoryview(data)[start : start + num_bytes]
        assert crc32(view) == zlib.crc32(view)
    for same in (b"\0", b"\xff"):
        assert crc32(same * num_bytes) == zlib.crc32(same * num_bytes)


def test_every_bit_counts() -> None:
    data = bytearray(RNG.bytes(70_000))
    before = crc32(bytes(data))
    for at in (0, 3, 4, 63, 64, 69_951, 69_952, 69_999):
        data[at] ^= 0x10
        assert crc32(bytes(data)) != before
        data[at] ^= 0x10
