"""The arithmetic of `float16`, of the NumPy oracle and of the compiled kernel alike."""

from __future__ import annotations

import struct
from types import ModuleType

import numpy as np
import pytest

from tierline.kernels import float16
from tierline.kernels.library import library
from tierline.kernels.numpy import float16 as oracle

CODES = np.arange(1 << 16, dtype=np.uint16)
SIZES = np.arange(0x7C00)
"""Codes of all finite magnitudes."""
VALUES = np.array([struct.unpack("<e", struct.pack("<H", size))[0] for size in SIZES], np.float32)
"""What they mean, by the standard library."""


@pytest.fixture(params=[oracle, float16], ids=["numpy", "compiled"])
def kernel(request: pytest.FixtureRequest) -> ModuleType:
    if request.param is float16 and library(wait=True) is None:
        pytest.skip("no C++ compiler")
    module: ModuleType = request.param
    return module


def encode(kernel: ModuleType, x_V: np.ndarray) -> list[int]:
    return list(np.frombuffer(kernel.encode(x_V[None]), "<u2").astype(int))


def decode(kernel: ModuleType, code: np.ndarray) -> np.ndarray:
    x_BV = np.empty((1, len(code)), np.float32)
    kernel.decode(code.astype("<u2").tobytes(), x_BV)
    return x_BV[0]


@pytest.mark.parametrize("sign", [1, -1])
def test_finite_codes_mean_what_the_standard_says(kernel: ModuleType, sign: int) -> None:
    side = 0x8000 if sign < 0 else 0
    assert decode(kernel, SIZES | side).tobytes() == np.copysign(VALUES, sign).tobytes()
    assert encode(kernel, np.copysign(VALUES, sign)) == (SIZES | side).tolist()


def test_infinities_stay_and_a_nan_keeps_its_fraction_and_is_quieted(kernel: ModuleType) -> None:
    assert decode(kernel, np.array([0x7C00, 0xFC00])).tolist() == [np.inf, -np.inf]
    assert encode(kernel, np.array([np.inf, -np.inf], np.float32)) == [0x7C00, 0xFC00]
    nan = CODES[(CODES & 0x7FFF) > 0x7C00].astype(np.uint32)
    bits = decode(kernel, nan).view(np.uint32)
    assert np.array_equal(bits, (nan & 0x8000) << 16 | 0x7FC00000 | (nan & 0x3FF) << 13)
    assert encode(kernel, bits.view(np.float32)) == (nan | 0x200).tolist()


@pytest.mark.parametrize("sign", [1, -1])
def test_every_midpoint_goes_to_the_even_code_and_its_neighbours_to_their_sides(kernel: ModuleType, sign: int) -> None:
    midpoint = (VALUES + np.append(VALUES[1:], np.float32(65536))) / 2  # the last one is that to infinity: 65520
    side = 0x8000 if sign < 0 else 0
    assert encode(kernel, sign * midpoint) == ((SIZES + (SIZES & 1)) | side).tolist()
    assert encode(kernel, sign * np.nextafter(midpoint, np.float32(0))) == (SIZES | side).tolist()
    assert encode(kernel, sign * np.nextafter(midpoint, np.float32(np.inf))) == ((SIZES + 1) | side).tolist()


def test_a_nan_with_low_bits_only_does_not_become_an_infinity(kernel: ModuleType) -> None:
    bits = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFC01234], np.uint32)
    assert encode(kernel, bits.view(np.float32)) == [0x7E00, 0xFE00, 0x7FFF, 0xFE00]


def test_what_is_below_half_precision_keeps_its_sign(kernel: ModuleType) -> None:
    small = np.array([0.0, 1e-45, 1e-20, 2.0**-25], np.float32)
    assert encode(kernel, small) == [0] * 4
    assert encode(kernel, -small) == [0x8000] * 4


def test_bytes_are_those_of_the_cast_of_numpy(kernel: ModuleType) -> None:
    """But for signalling NaNs, which it quiets where the processor converts, and not elsewhere."""
    bits = np.random.default_rng(5).integers(0, 1 << 32, 200_000, dtype=np.uint32)
    x_V = np.where((bits & 0x7FFFFFFF) > 0x7F800000, bits | np.uint32(0x400000), bits).view(np.float32)
    with np.errstate(over="ignore"):
        assert kernel.encode(x_V[None]) == x_V.astype("<f2").tobytes()


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (1, 1), (3, 37), (2, 1001)], ids=str)
def test_both_write_and_read_the_same_bytes(kernel: ModuleType, shape: tuple[int, int]) -> None:
    x_BV = np.random.default_rng(5).integers(0, 1 << 32, shape, dtype=np.uint32).view(np.float32)
    data = kernel.encode(x_BV)
    assert data == oracle.encode(x_BV)
    assert len(data) == shape[0] * oracle.row_bytes(shape[1])
    expected_BV, decoded_BV = np.empty_like(x_BV), np.empty_like(x_BV)
    oracle.decode(data, expected_BV)
    kernel.decode(data, decoded_BV)
    assert decoded_BV.tobytes() == expected_BV.tobytes()
