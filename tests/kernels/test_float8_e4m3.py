"""The arithmetic of `float8_e4m3`, of the NumPy oracle and of the compiled kernel alike."""

from __future__ import annotations

import struct
from types import ModuleType

import numpy as np
import pytest

from tierline.kernels import float8_e4m3
from tierline.kernels.library import library
from tierline.kernels.numpy import float8_e4m3 as oracle

RNG = np.random.default_rng(5)
POSITIVE = [m / 8 * 2.0**-6 for m in range(8)]
POSITIVE += [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8) if (e, m) != (15, 7)]
"""What codes 0 to 126 mean, by the specification."""


@pytest.fixture(params=[oracle, float8_e4m3], ids=["numpy", "compiled"])
def kernel(request: pytest.FixtureRequest) -> ModuleType:
    if request.param is float8_e4m3 and library(wait=True) is None:
        pytest.skip("no C++ compiler")
    module: ModuleType = request.param
    return module


def encode(kernel: ModuleType, values: np.ndarray) -> list[int]:
    return list(kernel.encode(values.astype(np.float32)[None]))


def decode(kernel: ModuleType, data: bytes, scale: bool = False) -> np.ndarray:
    x_BV = np.empty((1, len(data) - 4 * scale), np.float32)
    kernel.decode(data, x_BV, scale)
    return x_BV[0]


def test_all_codes_mean_what_the_specification_says(kernel: ModuleType) -> None:
    decoded = decode(kernel, bytes(range(256)))
    assert decoded[:127].tolist() == POSITIVE
    assert decoded[128:255].tolist() == [-value for value in POSITIVE]
    assert np.isnan(decoded[[127, 255]]).all()
    assert np.signbit(decoded).tolist() == [False] * 128 + [True] * 128
    assert POSITIVE[-1] == 448 == oracle.LARGEST
    assert encode(kernel, decoded) == list(range(256))


@pytest.mark.parametrize("sign", [1, -1])
def test_every_midpoint_goes_to_the_even_code_and_its_neighbours_to_their_sides(kernel: ModuleType, sign: int) -> None:
    codes, values = np.arange(127), np.array(POSITIVE, np.float32)
    side = 0x80 if sign < 0 else 0
    midpoint = (values[:-1] + values[1:]) / 2
    assert encode(kernel, sign * midpoint) == ((codes[:-1] + codes[:-1] % 2) | side).tolist()
    assert encode(kernel, sign * np.nextafter(midpoint, np.float32(0))) == (codes[:-1] | side).tolist()
    assert encode(kernel, sign * np.nextafter(midpoint, np.float32(1e9))) == (codes[1:] | side).tolist()


def test_what_is_too_large_saturates_and_nan_stays(kernel: ModuleType) -> None:
    values = np.array([449, 463, 464, 465, 480, 1e30, 3.4e38, -464, -3.4e38, np.nan, -np.nan, 1e-45, -1e-45])
    assert encode(kernel, values) == [126] * 7 + [254, 254, 127, 255, 0, 128]


@pytest.mark.parametrize("bad", [np.inf, -np.inf])
def test_infinities_have_no_code(kernel: ModuleType, bad: float) -> None:
    for at in (0, 99):
        values = np.full(100, np.nan)
        values[at] = bad
        with pytest.raises(ValueError, match="infinite"):
            encode(kernel, values)


def test_a_signalling_nan_is_no_number(kernel: ModuleType) -> None:
    assert encode(kernel, np.array([0x7F800001, 0xFF800001], np.uint32).view(np.float32)) == [127, 255]


def test_a_scale_is_the_largest_magnitude_over_448(kernel: ModuleType) -> None:
    x_BV = np.array([[3.5, -7.0, 0.0, 1.0]], np.float32)
    assert kernel.encode(x_BV, True) == struct.pack("<f", 7 / 448) + bytes([0x76, 0xFE, 0, 0x68])
    assert decode(kernel, kernel.encode(x_BV, True), True).tolist() == x_BV[0].tolist()


def test_rows_of_any_range_keep_a_relative_error_of_a_sixteenth(kernel: ModuleType) -> None:
    x_BV = (RNG.uniform(0.1, 1, (5, 300)) * 10.0 ** np.array([[-36], [-20], [0], [20], [37]])).astype(np.float32)
    decoded_BV = np.empty_like(x_BV)
    kernel.decode(kernel.encode(x_BV, True), decoded_BV, True)
    assert (np.abs(decoded_BV - x_BV) <= x_BV * (2.0**-4 + 1e-6)).all()


def test_a_row_of_zeros_needs_no_scale(kernel: ModuleType) -> None:
    assert kernel.encode(np.array([[0.0, -0.0]], np.float32), True) == bytes([0, 0, 0, 0, 0, 0x80])


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf, 1e38])
def test_behind_a_scale_there_is_no_place_for_what_is_not_finite(kernel: ModuleType, bad: float) -> None:
    x_BV = np.ones((2, 4), np.float32)
    x_BV[1, 2] = bad
    with pytest.raises(ValueError, match="NaN, infinite"):
        kernel.encode(x_BV, True)


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0, 1e-45, 1e36])
def test_scales_that_no_encoder_writes_are_refused(kernel: ModuleType, scale: float) -> None:
    with pytest.raises(ValueError, match="header"):
        decode(kernel, struct.pack("<f", scale) + b"\1\2", True)


def test_nan_behind_a_scale_is_refused(kernel: ModuleType) -> None:
    for code in (0x7F, 0xFF):
        with pytest.raises(ValueError, match="NaN"):
            decode(kernel, struct.pack("<f", 1.0) + bytes([1, code]), True)


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (1, 1), (3, 37), (2, 10001)], ids=str)
def test_both_write_and_read_the_same_bytes(kernel: ModuleType, shape: tuple[int, int], scale: bool) -> None:
    x_BV = (RNG.normal(size=shape) * 10.0 ** RNG.integers(-9, 4, shape)).astype(np.float32)
    data = kernel.encode(x_BV, scale)
    assert data == oracle.encode(x_BV, scale)
    assert len(data) == shape[0] * oracle.row_bytes(shape[1], scale)
    expected_BV, decoded_BV = np.empty_like(x_BV), np.empty_like(x_BV)
    oracle.decode(data, expected_BV, scale)
    kernel.decode(data, decoded_BV, scale)
    assert decoded_BV.tobytes() == expected_BV.tobytes()
