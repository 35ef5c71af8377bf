"""What `bfloat16`, `float8_e4m3`, `radix` and `dithered` promise beyond the laws of their room."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from tierline.core.coding import codec_for
from tierline.core.errors import CodecError, CorruptPayload, ShapeMismatch, UnknownCodec
from tierline.core.types import Payload, TensorSpec

SPECIAL = np.array([[np.nan, np.inf, -np.inf, -0.0, 1e-45, 3.4e38]], np.float32)
TRITS = np.array([[-1, 0, 1, 1], [0, 0, -1, 1]])


def round_trip(token: str, x_B: np.ndarray) -> np.ndarray:
    codec = codec_for(token)
    decoded: np.ndarray = codec.decode(codec.encode(x_B), TensorSpec(str(x_B.dtype), x_B.shape[1:]))
    return decoded


def test_bfloat16_keeps_nan_and_infinities_and_overflows_to_them() -> None:
    decoded = round_trip("bfloat16", SPECIAL)[0]
    assert np.isnan(decoded[0])
    assert decoded[1:].tolist() == [np.inf, -np.inf, 0.0, 0.0, np.inf]
    assert np.signbit(decoded[3])
    codec = codec_for("bfloat16")
    assert codec.max_error(SPECIAL) == np.inf
    assert codec.max_error(SPECIAL[:, :4]) == 0.0
    assert codec.max_error(np.array([[257.0]], np.float32)) == 1.0


def test_float8_keeps_nan_saturates_and_refuses_infinities() -> None:
    assert np.array_equal(
        round_trip("float8_e4m3", np.array([[np.nan, 500, -1e9, 3]], np.float32)),
        np.array([[np.nan, 448, -448, 3]], np.float32),
        equal_nan=True,
    )
    assert codec_for("float8_e4m3").max_error(np.array([[np.nan, 3, 500]], np.float32)) == 52.0
    with pytest.raises(CodecError, match="float8_e4m3: a value is infinite; use bfloat16 or raw"):
        round_trip("float8_e4m3", SPECIAL)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e38])
def test_float8_with_a_scale_takes_any_range_and_finite_values_only(bad: float) -> None:
    codec = codec_for("float8_e4m3:row")
    x_B = np.array([[1e-6, 3e-6], [2e6, 0]], np.float32)
    assert np.abs(round_trip(codec.token, x_B) / np.where(x_B > 0, x_B, 1) - (x_B > 0)).max() < 1 / 16
    assert codec.size_bounds(TensorSpec("float32", (2,)), 2) == (12, 12)
    for call in (codec.encode, codec.max_error):
        with pytest.raises(CodecError, match="float8_e4m3:row: a value is NaN, infinite"):
            call(np.array([[1, bad]], np.float32))


def test_float8_knows_two_scales() -> None:
    assert codec_for("float8_e4m3:scale=none").token == "float8_e4m3"
    with pytest.raises(UnknownCodec, match="scale is 'tensor', one of none, row"):
        codec_for("float8_e4m3:tensor")


@pytest.mark.parametrize("dtype", ["float32", "int8", "int32"])
def test_radix_takes_signed_alphabets(dtype: str) -> None:
    assert round_trip("radix:low=-1", TRITS.astype(dtype)).tolist() == TRITS.tolist()
    assert codec_for("radix:3:low=-1").token == "radix:low=-1"


def test_radix_spends_1_6_bits_on_a_trit_and_says_so_beforehand() -> None:
    x_B = np.zeros((2, 4000), np.uint8)
    assert codec_for("radix:3").encode(x_B).num_bytes == 1600
    assert codec_for("radix").size_bounds(TensorSpec("uint8", (4000,)), 2) == (1600, 1600)


@pytest.mark.parametrize("bad", [-1, 0.5, 3, np.nan, np.inf, 1e30])
def test_radix_refuses_what_is_not_of_its_alphabet(bad: float) -> None:
    with pytest.raises(CodecError, match="radix: a value is not an integer from 0 to 2; name a larger alphabet"):
        round_trip("radix", np.array([[1, bad, 2]], np.float32))


def test_radix_refuses_dtypes_that_do_not_hold_its_alphabet() -> None:
    with pytest.raises(CodecError, match="uint8 does not hold all of -1 to 1; cast to int32"):
        codec_for("radix:low=-1").encode(TRITS.astype(np.uint8) % 2)
    payload = Payload("radix:low=-1", "uint8", (1, 4), b"\0")
    with pytest.raises(CorruptPayload, match="no alphabet of uint8"):
        codec_for("radix:low=-1").decode(payload, TensorSpec("uint8", (4,)))
    with pytest.raises(ShapeMismatch, match="takes a batch of float32, uint8, int8, int32, got int64"):
        codec_for("radix").encode(TRITS.astype(np.int64))


@pytest.mark.parametrize("token", ["radix:1", "radix:-3", "radix:2147483648", "radix:3:low=2147483647"])
def test_radix_refuses_alphabets_that_nothing_holds(token: str) -> None:
    with pytest.raises(UnknownCodec, match=r"levels is|no dtype holds"):
        codec_for(token)


def test_radix_words_beyond_their_digits_are_corrupt() -> None:
    spec = TensorSpec("uint8", (5,))
    assert codec_for("radix").decode(Payload("radix", "uint8", (1, 5), bytes([242])), spec).tolist() == [[2] * 5]
    with pytest.raises(CorruptPayload, match="radix: a word holds more than its digits"):
        codec_for("radix").decode(Payload("radix", "uint8", (1, 5), bytes([243])), spec)


def test_the_seed_of_a_dither_travels_with_it() -> None:
    codec, x_B = codec_for("dithered:255"), np.array([[0.5, -1.0, 0.123]], np.float32)
    one, other = codec.encode(x_B, seed=2**53 - 1), codec.encode(x_B, seed=1)
    assert one.params == {"seed": 2.0**53 - 1}
    spec = TensorSpec("float32", (3,))
    assert not np.array_equal(codec.decode(one, spec), codec.decode(other, spec))
    for payload in (one, other):
        assert np.abs(codec.decode(payload, spec) - x_B).max() <= codec.max_error(x_B) <= 0.501 / 127


@pytest.mark.parametrize(
    "params", [{}, *({"seed": bad} for bad in (0.5, -1.0, 2.0**53, math.nan, math.inf, -math.inf))]
)
def test_a_dither_without_a_seed_is_corrupt(params: dict[str, float]) -> None:
    good = codec_for("dithered").encode(np.ones((1, 4), np.float32))
    with pytest.raises(CorruptPayload, match="dithered: parameter seed is"):
        codec_for("dithered").decode(replace(good, params=params), TensorSpec("float32", (4,)))


@pytest.mark.parametrize("seed", [-1, 2**53])
def test_a_seed_must_fit_a_double(seed: int) -> None:
    with pytest.raises(CodecError, match=r"dithered: seed is -?\d+, an integer from 0 to 2\^53 - 1"):
        codec_for("dithered").encode(np.ones((1, 4), np.float32), seed=seed)


@pytest.mark.parametrize("token", ["dithered:4", "dithered:1", "dithered:257", "dithered:-3"])
def test_levels_of_a_dither_are_odd_and_fit_a_byte(token: str) -> None:
    with pytest.raises(UnknownCodec, match="an odd number from 3 to 255"):
        codec_for(token)


@pytest.mark.parametrize("bad", [np.nan, -np.inf, 1e38])
def test_a_dither_refuses_values_without_a_place(bad: float) -> None:
    with pytest.raises(CodecError, match="dithered: a value is NaN, infinite or above"):
        codec_for("dithered").encode(np.array([[1, bad]], np.float32))


def test_a_dither_knows_its_largest_error() -> None:
    codec = codec_for("dithered:3")
    assert codec.max_error(np.zeros((2, 3), np.float32)) == 0.0
    assert codec.max_error(np.array([[0.1, 0], [-2, 1]], np.float32)) == pytest.approx(1.0, rel=1e-4)
