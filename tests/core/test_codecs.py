"""What each codec promises beyond the laws of its room: special values and exact errors."""

from __future__ import annotations

import numpy as np
import pytest

from tierline.core import catalog
from tierline.core.errors import CodecError, CorruptPayload
from tierline.core.types import Payload, TensorSpec

SPECIAL = np.array([[np.nan, np.inf, -np.inf, -0.0, 1e-45, 3e38]], np.float32)


def round_trip(name: str, x_B: np.ndarray) -> np.ndarray:
    codec = catalog.make("codec", name)
    decoded: np.ndarray = codec.decode(codec.encode(x_B), TensorSpec(str(x_B.dtype), x_B.shape[1:]))
    return decoded


def test_raw_keeps_every_bit() -> None:
    assert round_trip("raw", SPECIAL).tobytes() == SPECIAL.tobytes()


def test_raw_bools_are_zero_or_one() -> None:
    payload = Payload("raw", "bool", (1, 3), b"\1\2\0")
    with pytest.raises(CorruptPayload, match="neither 0 nor 1"):
        catalog.make("codec", "raw").decode(payload, TensorSpec("bool", (3,)))


def test_float16_keeps_nan_and_infinities_and_overflows_to_them() -> None:
    decoded = round_trip("float16", SPECIAL)[0]
    assert np.isnan(decoded[0])
    assert decoded[1:].tolist() == [np.inf, -np.inf, 0.0, 0.0, np.inf]
    assert np.signbit(decoded[3])
    codec = catalog.make("codec", "float16")
    assert codec.max_error(SPECIAL) == np.inf
    assert codec.max_error(SPECIAL[:, :4]) == 0.0
    assert codec.max_error(np.array([[2049.0]], np.float32)) == 1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e38])
def test_affine_refuses_values_without_a_place_on_its_scale(bad: float) -> None:
    with pytest.raises(CodecError, match=r"affine: a value is NaN, infinite .* use float16 or raw"):
        round_trip("affine", np.array([[0, 1], [2, bad]], np.float32))


def test_affine_bound_is_half_a_step() -> None:
    codec, x_B = catalog.make("codec", "affine"), np.array([[0, 1, 5.1], [7, 7, 7]], np.float32)
    assert codec.max_error(x_B) == pytest.approx(0.01, rel=1e-3)
    assert codec.max_error(x_B[1:]) == 0.0


def test_affine_rows_with_impossible_headers_are_corrupt() -> None:
    spec = TensorSpec("float32", (2,))
    for head in ("0000c07f0000803f", "000000000000807f", "00000000000080bf"):
        with pytest.raises(CorruptPayload, match="affine: a row's header"):
            catalog.make("codec", "affine").decode(
                Payload("affine", "float32", (1, 2), bytes.fromhex(head + "0001")), spec
            )


def test_bitplane_keeps_signs_and_refuses_nan() -> None:
    assert round_trip("bitplane", SPECIAL[:, 1:]).tolist() == [[1, -1, 1, 1, 1]]
    with pytest.raises(CodecError, match="bitplane: a value is NaN"):
        round_trip("bitplane", SPECIAL)


def test_bitplane_error_is_exact() -> None:
    codec = catalog.make("codec", "bitplane")
    assert codec.max_error(np.array([[1, -1], [-1, 1]], np.float32)) == 0.0
    assert codec.max_error(np.array([[1.5, -1]], np.float32)) == 0.5
    assert codec.max_error(np.array([[0.0, -4.0]], np.float32)) == 3.0


def test_bitplane_padding_must_be_clear() -> None:
    payload = Payload("bitplane", "float32", (1, 3), b"\xff")
    with pytest.raises(CorruptPayload, match="padding"):
        catalog.make("codec", "bitplane").decode(payload, TensorSpec("float32", (3,)))


@pytest.mark.parametrize("name", catalog.names("codec"))
def test_negative_counts_of_empty_rows_are_corrupt(name: str) -> None:
    for num_rows in (-1, -2):
        with pytest.raises(CorruptPayload, match="no batch"):
            catalog.make("codec", name).decode(
                Payload(name, "float32", (num_rows, 0), b""), TensorSpec("float32", (0,))
            )
