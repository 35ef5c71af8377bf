"""Laws of every codec in the catalogue. A codec advertises its dtypes in `dtypes`, and the integers it takes, where it
takes no others, in `alphabet`."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tierline.core import catalog
from tierline.core.coding import codec_for
from tierline.core.errors import CorruptPayload, ShapeMismatch, UnknownCodec
from tierline.core.types import Payload, TensorSpec

NAMES = catalog.names("codec")
OPTIONS = (
    "affine:1",
    "affine:3",
    "affine:4",
    "dithered:3",
    "float8_e4m3:row",
    "radix:100",
    "affine:4:per=channel",
    "affine:range=percentile:percent=80",
    "affine:2:per=channel:range=mse",
    "affine:3:per=channel:range=percentile:percent=60:rounding=stochastic",
)
"""Tokens beside the defaults: options and compositions that have a byte layout of their own."""
TOKENS = (*NAMES, *OPTIONS)
CASES = [(token, dtype) for token in TOKENS for dtype in codec_for(token).dtypes]
SHAPES = [(), (1,), (5,), (0,), (4, 8, 8), (3, 7)]
quick = settings(max_examples=80, deadline=None, derandomize=True, database=None)


def within(token: str, x_B: np.ndarray) -> np.ndarray:
    """The values, or integers made of them where a codec takes only those of an alphabet."""
    alphabet: range | None = getattr(codec_for(token), "alphabet", None)
    if alphabet is None:
        return x_B
    return (alphabet.start + np.mod(np.rint(x_B.astype(np.float64)), len(alphabet))).astype(x_B.dtype)


def batch(token: str, dtype: str, num_rows: int, shape: tuple[int, ...]) -> np.ndarray:
    return within(token, any_values(dtype, num_rows, shape))


def any_values(dtype: str, num_rows: int, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(7)
    if dtype == "bool":
        return rng.random((num_rows, *shape)) < 0.5
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=(num_rows, *shape)).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, (num_rows, *shape), dtype=dtype, endpoint=True)


def error_of(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.max(np.abs(x.astype(np.float64) - y.astype(np.float64)), initial=0.0))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_round_trip_keeps_shape_dtype_size_and_error(name: str, dtype: str, shape: tuple[int, ...]) -> None:
    codec, spec = codec_for(name), TensorSpec(dtype, shape)
    for num_rows in (0, 1, 3):
        x_B = batch(name, dtype, num_rows, shape)
        payload = codec.encode(x_B)
        assert (payload.codec, payload.dtype, payload.shape) == (name, dtype, x_B.shape)
        assert isinstance(payload.data, bytes)
        smallest, largest = codec.size_bounds(spec, num_rows)
        assert smallest <= payload.num_bytes <= largest
        decoded = codec.decode(payload, spec)
        into = np.empty_like(x_B)
        assert codec.decode(payload, spec, out=into) is into
        assert np.array_equal(into, decoded)
        assert decoded.dtype == x_B.dtype
        assert decoded.shape == x_B.shape
        assert decoded.flags.writeable
        assert error_of(x_B, decoded) <= codec.max_error(x_B)
        assert (codec.max_error(x_B) > 0.0) or np.array_equal(x_B, decoded)


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_batch_equals_single_rows_one_after_the_other(name: str, dtype: str) -> None:
    codec, x_B = codec_for(name), batch(name, dtype, 5, (3, 7))
    singles = [codec.encode(x_B[i : i + 1]).data for i in range(5)]
    assert codec.encode(x_B).data == b"".join(singles)


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_memory_order_does_not_matter(name: str, dtype: str) -> None:
    codec, x_B = codec_for(name), batch(name, dtype, 4, (6, 5))
    expected = codec.encode(x_B).data
    assert codec.encode(np.asfortranarray(x_B)).data == expected
    assert codec.encode(x_B[::-1][::-1]).data == expected
    assert codec.encode(np.repeat(x_B, 2, axis=2)[:, :, ::2]).data == expected
    read_only = x_B.copy()
    read_only.setflags(write=False)
    assert codec.encode(read_only).data == expected


@pytest.mark.parametrize("name", TOKENS)
def test_encoding_is_deterministic_for_a_seed_and_leaves_its_input_alone(name: str) -> None:
    codec, x_B = codec_for(name), batch(name, "float32", 3, (9,))
    before = x_B.copy()
    assert codec.encode(x_B, seed=5) == codec.encode(x_B, seed=5)
    assert np.array_equal(x_B, before)


@pytest.mark.parametrize("name", TOKENS)
@quick
@given(
    x_B=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=3, max_side=9),
        elements=st.floats(-(2.0**126), 2.0**126, width=32),
    )
)
def test_error_stays_within_max_error_for_any_finite_floats(name: str, x_B: np.ndarray) -> None:
    codec, x_B = codec_for(name), within(name, x_B)
    bound = codec.max_error(x_B)
    decoded = codec.decode(codec.encode(x_B), TensorSpec("float32", x_B.shape[1:]))
    assert math.isinf(bound) or error_of(x_B, decoded) <= bound


@pytest.mark.parametrize("name", TOKENS)
def test_an_out_that_does_not_fit_is_refused(name: str) -> None:
    codec, spec = codec_for(name), TensorSpec("float32", (6,))
    payload = codec.encode(batch(name, "float32", 2, (6,)))
    wide = np.empty((2, 12), np.float32)
    for out in (np.empty((3, 6), np.float32), np.empty((2, 6)), wide[:, ::2]):
        with pytest.raises(ShapeMismatch, match="out"):
            codec.decode(payload, spec, out=out)


@pytest.mark.parametrize("name", TOKENS)
@pytest.mark.parametrize("dtype", ["float64", "complex64", "uint16", ">f4"])
def test_other_dtypes_are_refused(name: str, dtype: str) -> None:
    with pytest.raises(ShapeMismatch, match=name):
        codec_for(name).encode(np.zeros((1, 4), dtype))


@pytest.mark.parametrize("name", TOKENS)
def test_a_scalar_is_no_batch(name: str) -> None:
    with pytest.raises(ShapeMismatch, match=name):
        codec_for(name).encode(np.float32(1).reshape(()))


@pytest.mark.parametrize("name", TOKENS)
def test_truncated_and_padded_data_is_corrupt(name: str) -> None:
    codec, spec = codec_for(name), TensorSpec("float32", (3, 7))
    good = codec.encode(batch(name, "float32", 2, (3, 7)))
    for data in (b"", good.data[:-1], good.data + b"\0", good.data * 2):
        with pytest.raises(CorruptPayload, match=name):
            codec.decode(Payload(name, "float32", good.shape, data), spec)


@pytest.mark.parametrize("name", TOKENS)
def test_headers_that_were_not_agreed_are_corrupt(name: str) -> None:
    codec, spec = codec_for(name), TensorSpec("float32", (4,))
    good = codec.encode(batch(name, "float32", 2, (4,)))
    wrong = [
        Payload("other", "float32", good.shape, good.data),
        Payload(name, "float64", good.shape, good.data),
        Payload(name, "int8", good.shape, good.data),
        Payload(name, "float32", (), good.data),
        Payload(name, "float32", (4,), good.data),
        Payload(name, "float32", (2, 5), good.data),
        Payload(name, "float32", (2, 2, 2), good.data),
        Payload(name, "float32", (-2, 4), good.data),
    ]
    for payload in wrong:
        with pytest.raises(CorruptPayload, match=name):
            codec.decode(payload, spec)
    with pytest.raises(CorruptPayload, match="at most 1"):
        codec.decode(good, spec, max_rows=1)


@pytest.mark.parametrize("name", TOKENS)
def test_a_huge_claim_allocates_nothing(name: str) -> None:
    codec = codec_for(name)
    big = 1 << 40
    tracemalloc.start()
    try:
        for payload, spec, max_rows in (
            (Payload(name, "float32", (big, 4), b"x" * 64), TensorSpec("float32", (4,)), 4096),
            (Payload(name, "float32", (4096, 1 << 20), b"x" * 64), TensorSpec("float32", (1 << 20,)), 4096),
            (Payload(name, "float32", (big, 4), b"x" * 64), TensorSpec("float32", (4,)), big),
        ):
            with pytest.raises(CorruptPayload):
                codec.decode(payload, spec, max_rows=max_rows)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1 << 20


dimension = st.integers(-3, 9) | st.integers(-(1 << 70), 1 << 70)


@pytest.mark.parametrize("name", TOKENS)
@quick
@given(data=st.data())
def test_hostile_payloads_decode_or_raise_the_documented_errors(name: str, data: st.DataObject) -> None:
    codec = codec_for(name)
    spec = TensorSpec("float32", data.draw(st.sampled_from([(), (0,), (3,), (2, 4)])))
    shape = data.draw(
        st.builds(lambda n: (n, *spec.shape), dimension) | st.lists(dimension, max_size=4).map(tuple), label="shape"
    )
    num_rows = shape[0] if shape and 0 <= shape[0] <= 9 else 1
    low, high = codec.size_bounds(spec, num_rows)
    raw = data.draw(st.binary(min_size=low, max_size=high) | st.binary(max_size=200), label="bytes")
    token = data.draw(st.sampled_from([name, "", "raw", "\ud800"]))
    dtype = data.draw(st.sampled_from(["float32", "float16", "", "O"]))
    params = data.draw(st.sampled_from([codec.encode(batch(name, "float32", 1, spec.shape)).params, {}, {"seed": 0.5}]))
    payload = Payload(token, dtype, shape, raw, params)
    try:
        decoded = codec.decode(payload, spec)
    except (CorruptPayload, UnknownCodec):
        return
    assert decoded.shape == shape
    assert decoded.dtype == np.float32
    assert len(raw) <= high
