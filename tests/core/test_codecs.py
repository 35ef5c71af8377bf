"""What each codec promises beyond the laws of its room: special values and exact errors."""

from __future__ import annotations

import numpy as np
import pytest
import zstandard
from codec_mutants import plain_token

from tierline.core import catalog
from tierline.core.coding import codec_for
from tierline.core.errors import CodecError, CorruptPayload, ShapeMismatch, UnknownCodec
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
    with pytest.raises(CodecError, match=r"affine: a value is NaN, infinite .* use bfloat16 or raw"):
        round_trip("affine", np.array([[0, 1], [2, bad]], np.float32))


def test_affine_bound_is_half_a_step() -> None:
    codec, x_B = catalog.make("codec", "affine"), np.array([[0, 1, 5.1], [7, 7, 7]], np.float32)
    assert codec.max_error(x_B) == pytest.approx(0.01, rel=1e-3)
    assert codec.max_error(x_B[1:]) == 0.0


def test_affine_rows_with_impossible_headers_are_corrupt() -> None:
    spec = TensorSpec("float32", (2,))
    for head in ("0000c07f0000803f", "000000800000803f", "000000000000807f", "00000000000080bf"):
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
        codec = codec_for(plain_token(name))
        dtype = codec.dtypes[0]
        with pytest.raises(CorruptPayload, match="no batch"):
            codec.decode(Payload(codec.token, dtype, (num_rows, 0), b""), TensorSpec(dtype, (0,)))


IMAGES = np.random.default_rng(3).integers(0, 256, (2, 3, 20, 12), dtype=np.uint8)


def payload_of(token: str, x_B: np.ndarray) -> Payload:
    return codec_for(token).encode(x_B)


def refused(token: str, payload: Payload, shape: tuple[int, ...], match: str, dtype: str = "float32") -> None:
    with pytest.raises(CorruptPayload, match=match):
        codec_for(token).decode(payload, TensorSpec(dtype, shape))


def test_sparse_bitmap_bytes_by_hand() -> None:
    x_B = np.array([[0, 1.5, -0.0, 0, 0, 0, 0, 0, np.nan], [0] * 9], np.float32)
    payload = payload_of("sparse_bitmap", x_B)
    assert payload.data == b"\x40\x80" + x_B[0, [1, 8]].tobytes() + b"\0\0"
    decoded = codec_for("sparse_bitmap").decode(payload, TensorSpec("float32", (9,)))
    assert np.array_equal(decoded, x_B, equal_nan=True)
    assert not np.signbit(decoded[0, 2])  # -0.0 is a zero, and zeros decode as +0.0


def test_sparse_bitmap_refuses_padding_and_what_its_bitmaps_do_not_need() -> None:
    refused("sparse_bitmap", Payload("sparse_bitmap", "float32", (1, 3), b"\x08" + bytes(4)), (3,), "padding")
    refused("sparse_bitmap", Payload("sparse_bitmap", "float32", (2, 3), b"\x80" + bytes(4)), (3,), "bitmaps of 2 rows")
    refused("sparse_bitmap", Payload("sparse_bitmap", "float32", (1, 3), b"\0" + bytes(4)), (3,), "bitmaps of 1 rows")


@pytest.mark.parametrize(
    "token", ["sparse_bitmap+sparse_bitmap", "topk+sparse_bitmap", "sparse_bitmap+jpeg", "topk+webp"]
)
def test_what_has_no_exact_size_is_not_wrapped(token: str) -> None:
    with pytest.raises(UnknownCodec, match=r"cannot wrap '(sparse_bitmap|jpeg|webp)'"):
        codec_for(token)


@pytest.mark.parametrize(
    "token", ["topk:0", "topk:nan", "topk:1.5", "topk:count=-1", "topk:inner=3", "zstd:30", "jpeg:99"]
)
def test_options_out_of_range_are_refused_by_name(token: str) -> None:
    with pytest.raises(UnknownCodec, match=token.split(":")[0]):
        codec_for(token)


@pytest.mark.parametrize(
    ("token", "told"),
    [
        ("affine:4:bits=8", "codec 'affine:4:bits=8': bits is given twice"),
        ("affine:bits=4:bits=4", "bits is given twice"),
        ("affine:per=channel:tensor", "per is given twice"),
        ("affine: 4", "bits is ' 4'"),
        ("affine:4\n", r"bits is '4\\n'"),
        ("affine:\u0664", "bits is '\u0664'"),
        ("affine:0_4", "bits is '0_4'"),
        ("affine:", "bits is ''"),
        ("affine:=4", "no option ''"),
        ("affine:bits=", "bits is ''"),
        ("affine:bits==4", "bits is '=4'"),
        ("affine:per=channel ", "per is 'channel '"),
        ("topk:1_0e-2", "share is '1_0e-2'"),
        ("topk: 0.1", "share is ' 0.1'"),
        ("affine ", "no such codec: 'affine '"),
        ("", "codec '': an empty stage"),
        ("affine++zstd", r"codec 'affine\+\+zstd': an empty stage"),
        ("+affine", "an empty stage"),
        ("raw:1", "takes at most 0 options"),
        ("sparse_bitmap+affine:per=channel", "'affine:per=channel' takes 9 bytes .* leave out per=channel"),
        ("topk+affine:4:per=channel+zstd", "codec 'topk': .* leave out per=channel"),
        ("topk:0.123:" + "9" * 109, "written out it has 126 characters"),
    ],
)
def test_tokens_are_read_strictly(token: str, told: str) -> None:
    with pytest.raises(UnknownCodec, match=told):
        codec_for(token)


def test_topk_keeps_the_largest_and_of_equal_ones_the_first() -> None:
    x_B = np.array([[1, -3, 2, -2, 0, 2, 2, -2, 0.5]], np.float32)
    decoded = codec_for("topk:count=3").decode(payload_of("topk:count=3", x_B), TensorSpec("float32", (9,)))
    assert decoded.tolist() == [[0, -3, 2, -2, 0, 0, 0, 0, 0]]
    assert codec_for("topk:count=3").max_error(x_B) == 2.0


def test_topk_refuses_to_drop_what_is_not_finite() -> None:
    x_B = np.array([[1, np.inf, 2, np.nan, 0]], np.float32)
    with pytest.raises(CodecError, match="more than 1 values"):
        payload_of("topk:count=1", x_B)
    decoded = codec_for("topk:count=2").decode(payload_of("topk:count=2", x_B), TensorSpec("float32", (5,)))
    assert np.array_equal(decoded, np.array([[0, np.inf, 0, np.nan, 0]], np.float32), equal_nan=True)


def test_cabac_stores_what_it_cannot_make_smaller() -> None:
    x_B = np.random.default_rng(0).random((2, 7)).astype(np.float32)
    inner = payload_of("affine", x_B).data
    assert payload_of("affine+cabac", x_B).data == b"\0" + inner
    refused("affine+cabac", Payload("affine+cabac", "float32", (2, 7), b"\2" + inner), (7,), "neither stored nor coded")


def test_cabac_streams_have_the_length_that_their_codes_need() -> None:
    x_B = np.tile(np.maximum(np.sin(np.arange(256, dtype=np.float32)), 0), (2, 1)).reshape(2, 16, 16)
    good = payload_of("affine:4+cabac", x_B)
    assert good.data[:1] == b"\1"
    for data in (good.data[:-1], good.data + b"\0"):
        refused("affine:4+cabac", Payload(good.codec, "float32", good.shape, data), (16, 16), "whose codes end at")


def test_cabac_streams_are_never_shorter_than_promised() -> None:
    """Nothing is cheaper than one value throughout; a shorter stream is refused before time is spent on it."""
    x_B = np.ones((1, 1 << 18), np.float32)
    good = payload_of("bitplane+cabac", x_B)
    assert codec_for("bitplane+cabac").size_bounds(TensorSpec("float32", (1 << 18,)))[0] == 17 <= good.num_bytes < 40
    refused("bitplane+cabac", Payload(good.codec, "float32", good.shape, good.data[:16]), (1 << 18,), "17 to")


def test_cabac_wraps_codes_of_one_width_only() -> None:
    with pytest.raises(UnknownCodec, match="cannot wrap 'raw'"):
        codec_for("cabac")


def test_zstd_refuses_frames_that_state_no_size_or_too_much() -> None:
    compressor = zstandard.ZstdCompressor(write_content_size=False)
    unsized = Payload("raw+zstd", "float32", (1, 4), compressor.compress(bytes(16)))
    refused("zstd", unsized, (4,), "without content size")
    for size in (12, 1 << 30):
        bomb = Payload("raw+zstd", "float32", (1, 4), frame_of_zeros(size))
        refused("zstd", bomb, (4,), f"{size} bytes of content")


def frame_of_zeros(size: int) -> bytes:
    """A frame that states `size` bytes: magic, descriptor (a 4-byte size, one segment), blocks of repeated zeros."""
    blocks = [min(1 << 17, size - at) for at in range(0, size, 1 << 17)]
    head = b"\x28\xb5\x2f\xfd\xa0" + size.to_bytes(4, "little")
    last = len(blocks) - 1
    return head + b"".join(
        (n << 3 | 1 << 1 | (at == last)).to_bytes(3, "little") + b"\0" for at, n in enumerate(blocks[:3] or blocks)
    )


@pytest.mark.parametrize("token", ["jpeg", "webp", "webp:lossless=1"])
def test_images_of_another_size_are_refused_before_they_are_decoded(token: str) -> None:
    good = payload_of(token, IMAGES)
    wide = Payload(token, "uint8", (2, 3, 20, 13), good.data)
    refused(token, wide, (3, 20, 13), r"an image of \[\d, 20, 12\]", "uint8")


@pytest.mark.parametrize("token", ["jpeg", "webp"])
def test_image_codecs_take_images_only(token: str) -> None:
    for x_B in (IMAGES.astype(np.float32), IMAGES[:, :2], IMAGES[:, 0], IMAGES[:, :, :0]):
        with pytest.raises(ShapeMismatch, match=rf"{token}: takes batches of uint8 images"):
            payload_of(token, x_B)


def test_jpeg_takes_no_metadata_and_no_second_scan() -> None:
    data = payload_of("jpeg", IMAGES[:1]).data[4:]
    comment = data[:2] + b"\xff\xfe\0\4hi" + data[2:]
    twice = data[:-2] + data[data.index(b"\xff\xda") :]
    for file, match in ((comment, "marker 0xfe"), (twice, "marker inside"), (data[:-2], "EOI")):
        payload = Payload("jpeg", "uint8", (1, 3, 20, 12), len(file).to_bytes(4, "little") + file)
        refused("jpeg", payload, (3, 20, 12), match, "uint8")


def test_webp_takes_no_extended_files() -> None:
    data = payload_of("webp", IMAGES[:1]).data[4:]
    extended = data[:12] + b"VP8X" + data[16:]
    payload = Payload("webp", "uint8", (1, 3, 20, 12), len(data).to_bytes(4, "little") + extended)
    refused("webp", payload, (3, 20, 12), "VP8X", "uint8")


@pytest.mark.parametrize(("token", "most"), [("jpeg:90", 30.0), ("webp:90", 30.0), ("webp:lossless=1", 0.0)])
def test_images_survive(token: str, most: float) -> None:
    ramp = np.add.outer(np.arange(24), np.arange(40)).astype(np.uint8) * 3
    x_B = np.stack([ramp, ramp[::-1], 255 - ramp])[None]
    for images in (x_B, x_B[:, :1]):
        decoded = codec_for(token).decode(payload_of(token, images), TensorSpec("uint8", images.shape[1:]))
        assert np.abs(decoded.astype(int) - images).mean() <= most / 10
        assert np.abs(decoded.astype(int) - images).max() <= most


def test_seeds_that_no_payload_holds_are_refused() -> None:
    for seed in (0.5, float("nan"), -1, 2**53):
        with pytest.raises(CodecError, match="seed is"):
            codec_for("dithered").encode(np.ones((1, 4), np.float32), seed=seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("token", ["affine", "bitplane", "raw", "sparse_bitmap+affine:4", "affine+zstd"])
@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_data_that_is_no_bytes_is_refused(token: str, kind: type) -> None:
    payload = payload_of(token, np.ones((2, 4), np.float32))
    changed = Payload(token, "float32", payload.shape, kind(payload.data))
    refused(token, changed, (4,), f"data is a {kind.__name__}; copy it into bytes")


def test_bitplane_has_no_error_for_nan() -> None:
    with pytest.raises(CodecError, match="bitplane: a value is NaN"):
        codec_for("bitplane").max_error(SPECIAL)


def test_refusals_speak_of_what_is_meant() -> None:
    with pytest.raises(UnknownCodec, match="bits is 'x', not an integer as tokens write it"):
        codec_for("affine:x")
    with pytest.raises(UnknownCodec, match=r"no such codec: 'nope'; valid: "):
        codec_for("nope")
