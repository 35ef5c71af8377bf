"""Decoders written from docs/codecs.md alone, with the standard library only: its words are enough, and true."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest

from tierline.core.coding import codec_for
from tierline.core.types import TensorSpec


def number(data: bytes) -> int:
    return int.from_bytes(data, "little")


def stream(data: bytes, count: int, bits: int) -> list[int]:
    """Code i in bits i * n and up of one number."""
    whole = number(data)
    return [whole >> i * bits & (1 << bits) - 1 for i in range(count)]


def take(data: bytes, num_bytes: int) -> tuple[bytes, bytes]:
    assert len(data) >= num_bytes
    return data[:num_bytes], data[num_bytes:]


def single(value: float) -> float:
    """As a float32 holds it."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def affine_row(data: bytes, num_values: int, bits: int) -> tuple[list[float], bytes]:
    head, data = take(data, 8)
    lo, scale = struct.unpack("<ff", head)
    codes, data = take(data, math.ceil(num_values * bits / 8))
    return [single(single(code * scale) + lo) for code in stream(codes, num_values, bits)], data


def bits_high_first(data: bytes, count: int) -> list[int]:
    return [data[i // 8] >> 7 - i % 8 & 1 for i in range(count)]


def decode(token: str, data: bytes, num_rows: int, shape: tuple[int, ...]) -> list[float]:
    found: list[float] = []
    num_values = math.prod(shape)
    for _ in range(num_rows):
        if token.startswith("affine"):
            channels = shape[0] if "per=channel" in token else 1
            for _ in range(channels):
                row, data = affine_row(data, num_values // channels, int(token.split(":")[1]))
                found += row
        elif token == "bitplane":
            packed, data = take(data, math.ceil(num_values / 8))
            found += [1.0 if bit else -1.0 for bit in bits_high_first(packed, num_values)]
        elif token == "bfloat16":
            packed, data = take(data, 2 * num_values)
            found += [struct.unpack("<f", b"\0\0" + packed[2 * i : 2 * i + 2])[0] for i in range(num_values)]
        elif token == "float16":
            packed, data = take(data, 2 * num_values)
            found += struct.unpack(f"<{num_values}e", packed)
        elif token.startswith("float8_e4m3"):
            scale = 1.0
            if token.endswith(":row"):
                head, data = take(data, 4)
                (scale,) = struct.unpack("<f", head)
            packed, data = take(data, num_values)
            found += [single(float8(byte) * scale) for byte in packed]
        elif token.startswith("sparse_bitmap+affine"):
            bitmap, data = take(data, math.ceil(num_values / 8))
            chosen = bits_high_first(bitmap, num_values)
            values: list[float] = []
            if any(chosen):
                values, data = affine_row(data, sum(chosen), int(token.split(":")[1]))
            found += [values.pop(0) if bit else 0.0 for bit in chosen]
        elif token.startswith("topk"):
            row, data = topk_row(data, num_values, float(token.split(":")[1].split("+")[0]))
            found += row
        else:
            row, data = radix_row(data, num_values, int(token.split(":")[1]), -1)
            found += row
    assert data == b""
    return found


def float8(byte: int) -> float:
    exponent, fraction = byte >> 3 & 15, byte & 7
    size = 2.0 ** (exponent - 7) * (1 + fraction / 8) if exponent else 2.0**-6 * fraction / 8
    return -size if byte >> 7 else size


def topk_row(data: bytes, num_values: int, share: float) -> tuple[list[float], bytes]:
    """Values as `affine:8`."""
    k = math.ceil(share * num_values)

    def sizes(low_bits: int) -> tuple[int, int]:
        return math.ceil(k * low_bits / 8), math.ceil((k + (num_values - 1 >> low_bits)) / 8)

    low_bits = min(range(32), key=lambda n: sum(sizes(n)))
    if math.ceil(num_values / 8) <= sum(sizes(low_bits)):
        bitmap, data = take(data, math.ceil(num_values / 8))
        places = [i for i, bit in enumerate(bits_high_first(bitmap, num_values)) if bit]
    else:
        low, data = take(data, sizes(low_bits)[0])
        high, data = take(data, sizes(low_bits)[1])
        ones = [i for i in range(8 * len(high)) if number(high) >> i & 1]
        places = [
            one - i << low_bits | code for i, (one, code) in enumerate(zip(ones, stream(low, k, low_bits), strict=True))
        ]
    values, data = affine_row(data, k, 8)
    found = [0.0] * num_values
    for place, value in zip(places, values, strict=True):
        found[place] = value
    return found, data


def radix_row(data: bytes, num_values: int, base: int, low: int) -> tuple[list[float], bytes]:
    most = {n: max(k for k in range(1, 65) if base**k <= 256**n) for n in range(1, 9)}
    k = most[max(most, key=lambda n: (most[n] / n, -n))]
    words = math.ceil(num_values / k)
    digits = math.ceil(num_values / words)
    word_bytes = math.ceil((base**digits - 1).bit_length() / 8)
    packed, data = take(data, words * word_bytes)
    found = [0.0] * (words * digits)
    for w in range(words):
        word = sum(packed[i * words + w] << 8 * i for i in range(word_bytes))
        for j in range(digits):
            found[j * words + w] = float(word // base**j % base + low)
    return found[:num_values], data


@pytest.mark.parametrize(
    "token",
    [
        "affine:4",
        "affine:3",
        "affine:1",
        "affine:5:per=channel",
        "affine:2:range=mse",
        "bitplane",
        "bfloat16",
        "float16",
        "float8_e4m3",
        "float8_e4m3:row",
        "sparse_bitmap+affine:4",
        "sparse_bitmap+affine:7",
        "topk:0.05+affine",
        "topk:0.4+affine",
        "radix:3:low=-1",
        "radix:5:low=-1",
    ],
)
@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 9), (1,), (130,)], ids=str)
def test_a_decoder_from_the_words_alone(token: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(5)
    x_B = np.maximum(rng.normal(size=(3, *shape)), -0.5).astype(np.float32)
    x_B[x_B < 0.2] = 0
    x_B[0] = 0  # a row without any value
    if token.startswith("radix"):
        x_B = rng.integers(-1, 2, x_B.shape).astype(np.float32)
    codec = codec_for(token)
    payload = codec.encode(x_B)
    expected_B = codec.decode(payload, TensorSpec("float32", shape))
    found = np.array(decode(token, payload.data, len(x_B), shape), np.float32).reshape(x_B.shape)
    assert np.array_equal(found, expected_B)
