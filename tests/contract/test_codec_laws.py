"""Laws of every codec in the catalogue. A codec advertises its dtypes in `dtypes`, and the integers it takes, where it
takes no others, in `alphabet`."""

from __future__ import annotations

import math
import re
import tracemalloc
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from codec_mutants import mutant, plain_token
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tierline.core import catalog
from tierline.core.coding import codec_for
from tierline.core.errors import CodecError, CorruptPayload, ShapeMismatch, UnknownCodec
from tierline.core.types import Payload, TensorSpec

NAMES = catalog.names("codec")
OPTIONS = ("affine:1", "affine:3", "affine:4", "dithered:3", "float8_e4m3:row", "radix:100")
"""Tokens beside the defaults: options and compositions that have a byte layout of their own."""
COMPOSED = (
    "sparse_bitmap+affine:4",
    "sparse_bitmap+affine:4+zstd",
    "sparse_bitmap+bitplane",
    "sparse_bitmap+float8_e4m3:row",
    "topk:0.4+dithered:3",
    "affine:3+cabac",
    "bitplane+cabac",
    "topk:0.4+float16",
    "topk:0.9+affine:4",
    "topk:count=3",
    "webp:lossless=1",
)
TOKENS = tuple(dict.fromkeys((*map(plain_token, NAMES), *OPTIONS, *COMPOSED)))
LONG_FLOATS = (
    "topk:0.1000001+affine",
    "topk:0.30000000000000004+raw",
    "topk:1+affine:2",
    "topk:1e-05",
    "affine:4:range=percentile:percent=99.12345678",
)
"""Options that six digits do not tell apart, or that are written in another way than Python does."""
SHAPES = [(), (1,), (5,), (0,), (4, 8, 8), (3, 7), (3, 9, 5), (1, 1, 17)]
quick = settings(max_examples=80, deadline=None, derandomize=True, database=None)


def takes(token: str, dtype: str, shape: tuple[int, ...]) -> bool:
    """Whether a codec has a place for rows of this dtype and shape; image codecs are particular."""
    codec = codec_for(token)
    if dtype not in codec.dtypes:
        return False
    try:
        codec.size_bounds(TensorSpec(dtype, shape))
    except ShapeMismatch:
        return False
    return True


def first_shape(token: str, dtype: str) -> tuple[int, ...]:
    """A shape with some values that the codec takes."""
    return next(shape for shape in [(3, 7), (3, 9, 5)] if takes(token, dtype, shape))


def spec_of(token: str) -> TensorSpec:
    dtype = codec_for(token).dtypes[0]
    return TensorSpec(dtype, first_shape(token, dtype))


CASES = [(token, dtype) for token in TOKENS for dtype in codec_for(token).dtypes]
ROUND_TRIPS = [(t, d, s) for t, d in CASES for s in SHAPES if takes(t, d, s)]
BY_ROWS = [(token, dtype) for token, dtype in CASES if codec_for(token).role != "bytes"]
FLOATS = [token for token, dtype in CASES if dtype == "float32"]


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


@pytest.mark.parametrize(("name", "dtype", "shape"), ROUND_TRIPS, ids=str)
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


@pytest.mark.parametrize("name", [*TOKENS, *LONG_FLOATS])
def test_the_token_of_a_payload_makes_its_decoder(name: str) -> None:
    spec = spec_of(name)
    x_B = batch(name, spec.dtype, 3, (16, 25) if name in LONG_FLOATS else spec.shape)
    spec = TensorSpec(spec.dtype, x_B.shape[1:])
    payload = codec_for(name).encode(x_B)
    codec_for.cache_clear()  # the other end of the link has never seen the token as it was written here
    decoder = codec_for(payload.codec)
    assert decoder.token == payload.codec == codec_for(name).token
    assert np.array_equal(decoder.decode(payload, spec), codec_for(name).decode(payload, spec))


@pytest.mark.parametrize(("name", "dtype"), BY_ROWS)
def test_batch_equals_single_rows_one_after_the_other(name: str, dtype: str) -> None:
    codec, x_B = codec_for(name), batch(name, dtype, 5, first_shape(name, dtype))
    singles = [codec.encode(x_B[i : i + 1]).data for i in range(5)]
    assert codec.encode(x_B).data == b"".join(singles)


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_values_of_a_batch_equal_those_of_single_rows(name: str, dtype: str) -> None:
    codec, spec = codec_for(name), TensorSpec(dtype, first_shape(name, dtype))
    x_B = batch(name, dtype, 5, spec.shape)
    singles = [codec.decode(codec.encode(x_B[i : i + 1]), spec) for i in range(5)]
    assert np.array_equal(codec.decode(codec.encode(x_B), spec), np.concatenate(singles))


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_memory_order_does_not_matter(name: str, dtype: str) -> None:
    codec, x_B = codec_for(name), batch(name, dtype, 4, first_shape(name, dtype))
    expected = codec.encode(x_B).data
    assert codec.encode(np.asfortranarray(x_B)).data == expected
    assert codec.encode(x_B[::-1][::-1]).data == expected
    assert codec.encode(np.repeat(x_B, 2, axis=-1)[..., ::2]).data == expected
    read_only = x_B.copy()
    read_only.setflags(write=False)
    assert codec.encode(read_only).data == expected


@pytest.mark.parametrize("name", TOKENS)
def test_encoding_is_deterministic_for_a_seed_and_leaves_its_input_alone(name: str) -> None:
    codec, x_B = codec_for(name), batch(name, spec_of(name).dtype, 3, spec_of(name).shape)
    before = x_B.copy()
    assert codec.encode(x_B, seed=5) == codec.encode(x_B, seed=5)
    assert np.array_equal(x_B, before)


@pytest.mark.parametrize("name", FLOATS)
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


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
def test_values_that_are_not_finite_are_kept_or_refused(name: str, bad: float) -> None:
    codec, x_B = codec_for(name), batch(name, "float32", 3, (3, 7))
    x_B[1, 2, 3:5] = bad
    try:
        payload = codec.encode(x_B)
    except CodecError:
        return
    decoded = codec.decode(payload, TensorSpec("float32", (3, 7)))
    if decoded[1, 2, 3] in (-1.0, 1.0) and "bitplane" in name:
        assert decoded[1, 2, 3] == np.sign(bad)  # its policy: an infinity keeps its sign, which is all it keeps
        return
    assert np.array_equal(decoded[1, 2, 3:5], x_B[1, 2, 3:5], equal_nan=True)
    assert np.isfinite(decoded).sum() == x_B.size - 2


@pytest.mark.parametrize("name", TOKENS)
def test_an_out_that_does_not_fit_is_refused(name: str) -> None:
    codec, spec = codec_for(name), spec_of(name)
    payload = codec.encode(batch(name, spec.dtype, 2, spec.shape))
    shape = (2, *spec.shape)
    wide = np.empty((*shape[:-1], 2 * shape[-1]), spec.dtype)
    outs = [np.empty((3, *spec.shape), spec.dtype), np.empty(shape), wide[..., ::2]]
    if wide.itemsize > 1:
        outs.append(unaligned(np.empty(shape, spec.dtype)))
    for out in outs:
        with pytest.raises(ShapeMismatch, match="out"):
            codec.decode(payload, spec, out=out)


@pytest.mark.parametrize("name", TOKENS)
def test_a_batch_that_is_not_aligned_is_coded_the_same(name: str) -> None:
    """Compiled loops read aligned values only: they get a copy."""
    codec, spec = codec_for(name), spec_of(name)
    x_B = batch(name, spec.dtype, 2, spec.shape)
    assert codec.encode(unaligned(x_B)).data == codec.encode(x_B).data


def unaligned(x_B: np.ndarray) -> np.ndarray:
    """A contiguous copy at an odd address."""
    held = np.empty(x_B.nbytes + 1, np.uint8)
    place_B: np.ndarray = held[1:].view(x_B.dtype).reshape(x_B.shape)
    place_B[...] = x_B
    return place_B


@pytest.mark.parametrize("name", TOKENS)
@pytest.mark.parametrize("dtype", ["float64", "complex64", "uint16", ">f4"])
def test_other_dtypes_are_refused(name: str, dtype: str) -> None:
    with pytest.raises(ShapeMismatch, match=re.escape(name.split("+")[0])):
        codec_for(name).encode(np.zeros((1, *spec_of(name).shape), dtype))


@pytest.mark.parametrize("name", TOKENS)
def test_a_scalar_is_no_batch(name: str) -> None:
    with pytest.raises(ShapeMismatch, match=re.escape(name.split("+")[0])):
        codec_for(name).encode(np.ones((), spec_of(name).dtype))


@pytest.mark.parametrize("name", TOKENS)
def test_truncated_and_padded_data_is_corrupt(name: str) -> None:
    codec, spec = codec_for(name), spec_of(name)
    good = codec.encode(batch(name, spec.dtype, 2, spec.shape))
    for data in (b"", good.data[:-1], good.data + b"\0", good.data * 2):
        with pytest.raises(CorruptPayload, match=re.escape(name.split("+")[0])):
            codec.decode(replace(good, data=data), spec)


@pytest.mark.parametrize("name", TOKENS)
def test_headers_that_were_not_agreed_are_corrupt(name: str) -> None:
    codec, spec = codec_for(name), spec_of(name)
    good = codec.encode(batch(name, spec.dtype, 2, spec.shape))
    num_values = math.prod(spec.shape)
    wrong = [
        replace(good, codec="other"),
        replace(good, dtype="float64"),
        replace(good, dtype="int16"),
        replace(good, shape=()),
        replace(good, shape=spec.shape),
        replace(good, shape=(2, num_values)),
        replace(good, shape=(2, *spec.shape[:-1], spec.shape[-1] + 1)),
        replace(good, shape=(-2, *spec.shape)),
    ]
    for payload in wrong:
        with pytest.raises(CorruptPayload, match=re.escape(name)):
            codec.decode(payload, spec)
    with pytest.raises(CorruptPayload, match="at most 1"):
        codec.decode(good, spec, max_rows=1)


@pytest.mark.parametrize("name", TOKENS)
def test_a_huge_claim_allocates_nothing(name: str) -> None:
    codec, spec, big = codec_for(name), spec_of(name), 1 << 40
    side = 1 << 11 if len(spec.shape) == 3 else 1 << 20
    wide = TensorSpec(spec.dtype, (*spec.shape[:-1], side))
    tracemalloc.start()
    try:
        for num_rows, limit, max_rows in ((big, spec, 4096), (4096, wide, 4096), (big, spec, big)):
            payload = Payload(name, spec.dtype, (num_rows, *limit.shape), b"x" * 64)
            with pytest.raises(CorruptPayload):
                codec.decode(payload, limit, max_rows=max_rows)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1 << 20


dimension = st.integers(-3, 9) | st.integers(-(1 << 70), 1 << 70)


@pytest.mark.parametrize("name", TOKENS)
@quick
@given(data=st.data())
def test_hostile_payloads_decode_or_raise_the_documented_errors(name: str, data: st.DataObject) -> None:
    codec, own = codec_for(name), spec_of(name).dtype
    shapes = [shape for shape in [(), (0,), (3,), (2, 4), (3, 9, 5)] if takes(name, own, shape)]
    spec = TensorSpec(own, data.draw(st.sampled_from(shapes)))
    shape = data.draw(
        st.builds(lambda n: (n, *spec.shape), dimension) | st.lists(dimension, max_size=4).map(tuple), label="shape"
    )
    num_rows = shape[0] if shape and 0 <= shape[0] <= 9 else 1
    low, high = codec.size_bounds(spec, num_rows)
    raw = data.draw(st.binary(min_size=low, max_size=min(high, low + 300)) | st.binary(max_size=200), label="bytes")
    token = data.draw(st.sampled_from([name, "", "raw", "\ud800"]))
    dtype = data.draw(st.sampled_from([own, "float16", "", "O"]))
    params = data.draw(st.sampled_from([codec.encode(batch(name, own, 1, spec.shape)).params, {}, {"seed": 0.5}]))
    payload = Payload(token, dtype, shape, raw, params)
    try:
        decoded = codec.decode(payload, spec)
    except (CorruptPayload, UnknownCodec):
        return
    assert decoded.shape == shape
    assert decoded.dtype == np.dtype(own)
    assert len(raw) <= high


@pytest.mark.parametrize("name", TOKENS)
def test_damaged_payloads_decode_or_are_corrupt(name: str) -> None:
    """A slice of what benchmarks/fuzz_codecs.py does a million times."""
    codec, spec = codec_for(name), spec_of(name)
    good = codec.encode(batch(name, spec.dtype, 3, spec.shape))
    for seed in range(60):
        data = mutant([good.data], Random(seed))
        try:
            decoded = codec.decode(replace(good, data=data), spec)
        except CorruptPayload:
            continue
        assert decoded.shape == (3, *spec.shape)
        assert len(data) <= codec.size_bounds(spec, 3)[1]
