"""The arithmetic of `affine` and `bitplane`, of the NumPy oracles and of the compiled kernels alike."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest

from tierline.kernels import affine, bitplane
from tierline.kernels.library import library
from tierline.kernels.numpy import affine as affine_oracle
from tierline.kernels.numpy import bitplane as bitplane_oracle
from tierline.kernels.numpy.affine import HEADER_BYTES

RNG = np.random.default_rng(5)
MODULES = {"numpy": (affine_oracle, bitplane_oracle), "compiled": (affine, bitplane)}
_in_use: list[ModuleType] = [affine_oracle, bitplane_oracle]


@pytest.fixture(params=sorted(MODULES), autouse=True)
def implementation(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "compiled" and library(wait=True) is None:
        pytest.skip("no C++ compiler")
    _in_use[:] = MODULES[request.param]
    yield
    _in_use[:] = MODULES["numpy"]


def affine_encode(x_BV: np.ndarray, bits: int = 8) -> np.ndarray:
    data = _in_use[0].encode(x_BV, bits)
    return np.frombuffer(data, np.uint8).reshape(len(x_BV), affine_oracle.row_bytes(x_BV.shape[1], bits))


def affine_decode(coded_BP: np.ndarray, bits: int = 8) -> np.ndarray:
    num_values = (coded_BP.shape[1] - HEADER_BYTES) * 8 // bits
    x_BV = np.empty((len(coded_BP), num_values), np.float32)
    _in_use[0].decode(coded_BP.tobytes(), x_BV, bits)
    return x_BV


def bitplane_encode(x_BV: np.ndarray) -> np.ndarray:
    data = _in_use[1].encode(x_BV)
    return np.frombuffer(data, np.uint8).reshape(len(x_BV), bitplane_oracle.row_bytes(x_BV.shape[1]))


def bitplane_decode(packed_BP: np.ndarray, num_values: int) -> np.ndarray:
    x_BV = np.empty((len(packed_BP), num_values), np.float32)
    _in_use[1].decode(packed_BP.tobytes(), x_BV)
    return x_BV


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 64), (5, 1001)], ids=str)
def test_both_write_and_read_the_same_bytes(shape: tuple[int, int], bits: int) -> None:
    x_BV = (RNG.normal(size=shape) * 10.0 ** RNG.integers(-30, 30, (shape[0], 1))).astype(np.float32)
    coded_BP = affine_encode(x_BV, bits)
    assert coded_BP.tobytes() == affine_oracle.encode(x_BV, bits)
    expected_BV = np.empty_like(x_BV)
    affine_oracle.decode(coded_BP.tobytes(), expected_BV, bits)
    decoded_BV = np.empty_like(x_BV)
    _in_use[0].decode(coded_BP.tobytes(), decoded_BV, bits)
    assert decoded_BV.tobytes() == expected_BV.tobytes()
    assert bitplane_encode(x_BV).tobytes() == bitplane_oracle.encode(x_BV)


def test_affine_codes_are_one_stream_of_bits_lowest_first() -> None:
    x_BV = np.array([[0, 1, 2, 3, 4, 5, 6, 7, 7, 0]], np.float32)
    word = sum(code << (3 * i) for i, code in enumerate([0, 1, 2, 3, 4, 5, 6, 7, 7, 0]))
    assert affine_encode(x_BV, 3).tobytes() == struct.pack("<ff", 0.0, 1.0) + word.to_bytes(4, "little")


def test_affine_writes_a_zero_minimum_as_positive() -> None:
    assert affine_encode(np.array([[-0.0, 1.0]], np.float32))[0, :4].tobytes() == bytes(4)


def test_affine_refuses_set_padding() -> None:
    row = struct.pack("<ff", 0, 1) + bytes([0x00, 0xF0])
    with pytest.raises(ValueError, match="padding"):
        _in_use[0].decode(row, np.empty((1, 3), np.float32), 4)


def test_affine_bytes_by_hand() -> None:
    x_BV = np.array([[-1.0, 0.0, 0.25, 4.1]], np.float32)
    scale = np.float32(np.float32(5.1) / np.float32(255))
    assert scale == pytest.approx(0.02)
    expected = struct.pack("<ff", -1.0, scale) + bytes([0, 50, 62, 255])
    assert affine_encode(x_BV).tobytes() == expected


def test_affine_agrees_with_a_loop_over_scalars() -> None:
    x_BV = (RNG.normal(size=(6, 37)) * 10.0 ** RNG.integers(-20, 20, (6, 1))).astype(np.float32)
    coded_BP = affine_encode(x_BV)
    decoded_BV = affine_decode(coded_BP)
    for row, coded, decoded in zip(x_BV, coded_BP, decoded_BV, strict=True):
        lo, hi = row.min(), row.max()
        scale = np.float32(hi - lo) / np.float32(255)
        inverse = np.float32(1) / scale
        codes = [int(np.rint((value - lo) * inverse)) for value in row]
        assert coded.tobytes() == struct.pack("<ff", lo, scale) + bytes(codes)
        assert decoded.tolist() == [np.float32(code) * scale + lo for code in codes]


def test_affine_error_is_half_a_step() -> None:
    x_BV = RNG.normal(size=(50, 200)).astype(np.float32)
    decoded_BV = affine_decode(affine_encode(x_BV))
    step_B = (x_BV.max(axis=1) - x_BV.min(axis=1)) / 255
    assert (np.abs(decoded_BV - x_BV).max(axis=1) <= 0.5001 * step_B).all()
    assert (np.abs(decoded_BV - x_BV).max(axis=1) > 0.4 * step_B).all()


@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, -3e37, 1e-40, 2.0**126])
def test_affine_constant_rows_are_exact(value: float) -> None:
    x_BV = np.full((2, 5), value, np.float32)
    assert np.array_equal(affine_decode(affine_encode(x_BV)), x_BV)


def test_affine_tiny_ranges_do_not_divide_by_zero() -> None:
    x_BV = np.array([[0.0, 1e-45, 1e-40]], np.float32)
    assert np.abs(affine_decode(affine_encode(x_BV)) - x_BV).max() <= 2.0**-126


def test_affine_takes_the_widest_range_it_promises() -> None:
    x_BV = np.array([[-(2.0**126), 0.0, 2.0**126]], np.float32)
    assert np.abs(affine_decode(affine_encode(x_BV)) - x_BV).max() <= 2.0**127 / 509


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e38, -1e38])
def test_affine_refuses_values_without_a_place(bad: float) -> None:
    for at in (0, 3):
        x_BV = np.zeros((2, 4), np.float32)
        x_BV[1, at] = bad
        with pytest.raises(ValueError, match="NaN, infinite"):
            affine_encode(x_BV)
    with pytest.raises(ValueError, match="NaN, infinite"):
        affine_encode(np.full((1, 3), bad, np.float32))


@pytest.mark.parametrize(
    ("lo", "scale"),
    [
        (np.nan, 1),
        (np.inf, 1),
        (-np.inf, 1),
        (0, np.nan),
        (0, np.inf),
        (0, -1),
        (0, 0),
        (0, 1e-45),
        (1e38, 1),
        (0, 1e36),
        (-0.0, 1),
    ],
)
def test_affine_refuses_headers_that_no_encoder_writes(lo: float, scale: float) -> None:
    row = np.frombuffer(struct.pack("<ff", lo, scale) + b"\1\2\3", np.uint8)
    good = affine_encode(np.ones((1, 3), np.float32))[0]
    with pytest.raises(ValueError, match="header"):
        affine_decode(np.stack([good, row]))


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_affine_without_values(shape: tuple[int, int]) -> None:
    coded_BP = affine_encode(np.zeros(shape, np.float32))
    assert coded_BP.shape == (shape[0], HEADER_BYTES + shape[1])
    assert affine_decode(coded_BP).shape == shape


def test_bitplane_first_value_is_the_highest_bit_and_rows_are_padded() -> None:
    x_BV = np.array([[1, -1, -1, 1, -1, -1, -1, -1, 1, 1], [-1] * 10], np.float32)
    assert bitplane_encode(x_BV).tolist() == [[0b10010000, 0b11000000], [0, 0]]


def test_bitplane_zero_of_either_sign_is_positive() -> None:
    x_BV = np.array([[0.0, -0.0, 1e-45, -1e-45, np.inf, -np.inf, 3, -3]], np.float32)
    assert bitplane_encode(x_BV).tolist() == [[0b11101010]]


@pytest.mark.parametrize("num_values", [0, 1, 7, 8, 9, 64, 100])
def test_bitplane_is_exact_for_signs(num_values: int) -> None:
    x_BV = np.where(RNG.random((3, num_values)) < 0.5, 1, -1).astype(np.float32)
    packed_BP = bitplane_encode(x_BV)
    assert packed_BP.shape == (3, (num_values + 7) // 8)
    decoded_BV = bitplane_decode(packed_BP, num_values)
    assert decoded_BV.dtype == np.float32
    assert np.array_equal(decoded_BV, x_BV)


def test_bitplane_refuses_set_padding() -> None:
    with pytest.raises(ValueError, match="padding"):
        bitplane_decode(np.array([[0xFF, 0x01]], np.uint8), 15)
    assert bitplane_decode(np.array([[0xFF, 0x02]], np.uint8), 15).shape == (1, 15)
