from __future__ import annotations

import struct

import numpy as np
import pytest

from tierline.kernels.numpy import HEADER_BYTES, affine_decode, affine_encode, bitplane_decode, bitplane_encode

RNG = np.random.default_rng(5)


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
