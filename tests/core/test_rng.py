from __future__ import annotations

import dataclasses
import hashlib
import struct

import numpy as np
import pytest

from tierline.core.rng import Key, philox4x32

# Published with the authors' Random123 library (kat_vectors, philox4x32 with 10 rounds).
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
KEY = Key(run="r1", round=3, sender="edge-1", receiver="cloud", tensor="conv.weight")
FROZEN = ["3eb417db", "3df2d24a", "e08a9963", "c21efe64", "a376a1b4"]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, expected: str) -> None:
    k0, k1 = words(key)
    assert philox4x32(np.array([words(counter)], np.uint32), (k0, k1)).tolist() == [words(expected)]


def test_counters_are_independent_of_each_other() -> None:
    counters = np.arange(40, dtype=np.uint32).reshape(10, 4)
    together = philox4x32(counters, (1, 2))
    assert together.dtype == np.uint32
    for i in range(10):
        assert np.array_equal(philox4x32(counters[i : i + 1], (1, 2))[0], together[i])


def test_a_key_becomes_the_stated_hash_of_its_canonical_encoding() -> None:
    canonical = b"\2\0\0\0r1" + struct.pack("<q", 3) + b"\6\0\0\0edge-1" + b"\5\0\0\0cloud" + b"\x0b\0\0\0conv.weight"
    k0, k1, c2, c3 = struct.unpack("<4I", hashlib.blake2b(canonical, digest_size=16).digest())
    counters = np.array([[0, 0, c2, c3], [1, 0, c2, c3]], np.uint32)
    assert np.array_equal(KEY.bits(8), philox4x32(counters, (k0, k1)).ravel())


def test_the_stream_is_frozen() -> None:
    assert [f"{word:08x}" for word in KEY.bits(5)] == FROZEN


def test_a_shorter_stream_is_a_prefix() -> None:
    long = KEY.bits(13)
    for n in range(14):
        bits = KEY.bits(n)
        assert bits.dtype == np.uint32
        assert np.array_equal(bits, long[:n])


@pytest.mark.parametrize(
    "change", [{"run": "r2"}, {"round": 4}, {"sender": "edge-2"}, {"receiver": "x"}, {"tensor": "b"}], ids=str
)
def test_every_field_changes_the_stream(change: dict[str, str | int]) -> None:
    other = dataclasses.replace(KEY, **change)
    assert (other.bits(64) == KEY.bits(64)).mean() < 0.1


def test_text_cannot_move_between_fields() -> None:
    a = Key(run="r", round=0, sender="ab", receiver="c", tensor="")
    b = Key(run="r", round=0, sender="a", receiver="bc", tensor="")
    assert not np.array_equal(a.bits(4), b.bits(4))


def test_uniform_is_the_upper_24_bits_and_looks_uniform() -> None:
    x = KEY.uniform(100_000)
    assert x.dtype == np.float32
    assert x.min() >= 0.0
    assert x.max() < 1.0
    assert np.array_equal(x * 2**24, KEY.bits(100_000) >> 8)
    assert abs(x.mean() - 0.5) < 0.005
    assert abs(x.var() - 1 / 12) < 0.001
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 0.01
    counts = np.bincount((x * 10).astype(int), minlength=10)
    assert abs(counts - 10_000).max() < 500


def test_a_permutation_is_the_order_of_the_words() -> None:
    key = Key("r", 3, "a", "b", "order")
    order = key.permutation(257)
    assert order.dtype == np.int64 and np.array_equal(np.sort(order), np.arange(257))
    words = key.bits(257)[order]
    assert (words[:-1] <= words[1:]).all()
    assert np.array_equal(order, key.permutation(257))
    assert not np.array_equal(order, key.child("x").permutation(257))
    assert key.child("x") == Key("r", 3, "a", "b", "order/x")
