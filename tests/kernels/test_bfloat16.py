"""The arithmetic of `bfloat16`, of the NumPy oracle and of the compiled kernel alike."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from tierline.kernels import bfloat16
from tierline.kernels.library import library
from tierline.kernels.numpy import bfloat16 as oracle

CODES = np.arange(1 << 16, dtype=np.uint16)


@pytest.fixture(params=[oracle, bfloat16], ids=["numpy", "compiled"])
def kernel(request: pytest.FixtureRequest) -> ModuleType:
    if request.param is bfloat16 and library(wait=True) is None:
        pytest.skip("no C++ compiler")
    module: ModuleType = request.param
    return module


def encode(kernel: ModuleType, bits: np.ndarray) -> list[int]:
    data = kernel.encode(bits.astype(np.uint32).view(np.float32)[None])
    return list(np.frombuffer(data, "<u2").astype(int))


def decode(kernel: ModuleType, code: np.ndarray) -> np.ndarray:
    x_BV = np.empty((1, len(code)), np.float32)
    kernel.decode(code.astype("<u2").tobytes(), x_BV)
    return x_BV[0]


def test_a_code_is_the_upper_half_of_a_float(kernel: ModuleType) -> None:
    assert np.array_equal(decode(kernel, CODES).view(np.uint32), CODES.astype(np.uint32) << 16)


def test_every_code_keeps_its_bits_and_a_nan_is_quieted(kernel: ModuleType) -> None:
    nan = ((CODES & 0x7F80) == 0x7F80) & ((CODES & 0x7F) != 0)
    assert nan.sum() == 254
    expected = np.where(nan, CODES | 0x40, CODES)
    assert encode(kernel, CODES.astype(np.uint32) << 16) == expected.tolist()


@pytest.mark.parametrize("sign", [0, 0x8000])
def test_every_midpoint_goes_to_the_even_code_and_its_neighbours_to_their_sides(kernel: ModuleType, sign: int) -> None:
    code = np.arange(0x7F80, dtype=np.uint32)  # all finite ones of a sign; the last midpoint is that to infinity
    midpoint = (code | sign) << 16 | 0x8000
    assert encode(kernel, midpoint) == ((code + (code & 1)) | sign).tolist()
    assert encode(kernel, midpoint - 1) == (code | sign).tolist()
    assert encode(kernel, midpoint + 1) == ((code + 1) | sign).tolist()


def test_a_nan_with_low_bits_only_does_not_become_an_infinity(kernel: ModuleType) -> None:
    assert encode(kernel, np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF])) == [0x7FC0, 0xFFC0, 0x7FFF]


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
