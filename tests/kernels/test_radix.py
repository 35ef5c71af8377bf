"""The arithmetic of `radix`, of the NumPy oracle and of the compiled kernel alike."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
import pytest

from tierline.kernels import radix
from tierline.kernels.library import library
from tierline.kernels.numpy import radix as oracle

RNG = np.random.default_rng(5)
LEVELS = [2, 3, 4, 5, 7, 9, 15, 17, 100, 255, 256, 257, 1000, 65535, 65536, 10**6, 2**31 - 1]


@pytest.fixture(params=[oracle, radix], ids=["numpy", "compiled"])
def kernel(request: pytest.FixtureRequest) -> ModuleType:
    if request.param is radix and library(wait=True) is None:
        pytest.skip("no C++ compiler")
    module: ModuleType = request.param
    return module


def draw(dtype: str, shape: tuple[int, int], levels: int, low: int) -> np.ndarray:
    x_BV = RNG.integers(low, low + levels, shape)
    x_BV[:, ::7] = low + levels - 1  # so that words come near their largest
    return x_BV.astype(dtype)


@pytest.mark.parametrize("dtype", oracle.DTYPES)
@pytest.mark.parametrize("levels", LEVELS)
def test_both_write_the_same_bytes_and_lose_nothing(kernel: ModuleType, levels: int, dtype: str) -> None:
    lows = [low for low in (0, -1, -(levels // 2), -100, 55) if oracle.fits(np.dtype(dtype), levels, low)]
    for low in lows:
        for shape in [(1, 1), (3, 2), (2, 41), (3, 1501), (0, 4), (2, 0)]:
            x_BV = draw(dtype, shape, levels, low)
            data = kernel.pack(x_BV, levels, low)
            assert len(data) == shape[0] * oracle.row_bytes(shape[1], levels)
            assert data == oracle.pack(x_BV, levels, low)
            decoded_BV = np.empty_like(x_BV)
            kernel.unpack(data, decoded_BV, levels, low)
            assert np.array_equal(decoded_BV, x_BV)


def test_digits_of_a_word_are_as_many_values_apart_as_there_are_words(kernel: ModuleType) -> None:
    trits = np.array([[2, 0, 1, 1, 0, 0, 1, 2, 2]], np.uint8)  # words of 5 digits: 2, 1, 0, 1, 2 and 0, 1, 0, 2
    assert list(kernel.pack(trits, 3)) == [2 + 3 + 27 + 2 * 81, 3 + 2 * 27]


def test_bytes_of_a_word_are_as_far_apart_as_there_are_words(kernel: ModuleType) -> None:
    symbols = np.array([[999, 1]], np.uint16)
    assert list(kernel.pack(symbols, 1000)) == list((999 + 1000).to_bytes(3, "little"))
    assert oracle.layout(8, 1000) == (2, 4, 5)
    symbols = np.array([[1, 2, 3, 4, 5, 6, 7, 8]], np.uint16)
    words = [1 + 3 * 10**3 + 5 * 10**6 + 7 * 10**9, 2 + 4 * 10**3 + 6 * 10**6 + 8 * 10**9]
    expected = [words[w] >> 8 * k & 255 for k in range(5) for w in range(2)]
    assert list(kernel.pack(symbols, 1000)) == expected


@pytest.mark.parametrize("levels", LEVELS)
def test_rows_are_as_small_as_words_of_64_bits_could_make_them(levels: int) -> None:
    num_values = 27720
    num_digits = max(k for k in range(1, 65) if levels**k <= 2**64)
    bits = 8 * oracle.row_bytes(num_values, levels) / num_values
    assert math.log2(levels) <= bits <= 64 / num_digits + 0.01
    assert 8 * oracle.row_bytes(1, levels) < math.log2(levels) + 8


def test_a_trit_takes_1_6_bits() -> None:
    assert oracle.row_bytes(40_000, 3) * 8 / 40_000 == 1.6


@pytest.mark.parametrize(
    ("dtype", "levels", "low"),
    [
        (dtype, levels, low)
        for dtype in oracle.DTYPES
        for levels, low in [(3, 0), (17, 2), (100, 5), (3, -1)]
        if oracle.fits(np.dtype(dtype), levels, low)
    ],
)
def test_values_outside_of_the_alphabet_are_refused(kernel: ModuleType, dtype: str, levels: int, low: int) -> None:
    least, most = (-1e30, 1e30) if dtype == "float32" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    bad = [
        value
        for value in (low - 1, low + levels, least, most)
        if least <= value <= most and not low <= value < low + levels
    ]
    for value in bad:
        for at in (0, 40, 699):
            x_BV = np.full((2, 700), low, dtype)
            x_BV[1, at] = value
            with pytest.raises(ValueError, match=f"not an integer from {low} to {low + levels - 1}"):
                kernel.pack(x_BV, levels, low)


@pytest.mark.parametrize("bad", [0.5, -0.5, 1.9999999, 1e-45, np.nan, np.inf, -np.inf, 2.0**31, 2.0**40, -(2.0**23)])
def test_floats_that_are_no_symbols_are_refused(kernel: ModuleType, bad: float) -> None:
    for levels in (3, 2**22):
        x_BV = np.zeros((1, 50), np.float32)
        x_BV[0, 33] = bad
        with pytest.raises(ValueError, match="not an integer"):
            kernel.pack(x_BV, levels)


def test_zero_of_either_sign_is_one_symbol(kernel: ModuleType) -> None:
    assert kernel.pack(np.array([[-0.0, 0.0, -1.0]], np.float32), 3, -1) == bytes([1 + 3])


@pytest.mark.parametrize("levels", [3, 9, 17, 100, 1000, 10**6])
def test_words_that_no_packing_makes_are_refused(kernel: ModuleType, levels: int) -> None:
    num_values = 200 * oracle.layout(100_000, levels).num_digits
    num_words, num_digits, word_bytes = oracle.layout(num_values, levels)
    x_BV = np.empty((1, num_values), np.uint32)
    for word, good in ((levels**num_digits - 1, True), (levels**num_digits, False), (256**word_bytes - 1, False)):
        data = np.zeros((word_bytes, num_words), np.uint8)
        data[:, 77] = list(word.to_bytes(word_bytes, "little"))
        if good:
            kernel.unpack(data.tobytes(), x_BV, levels)
            assert x_BV.reshape(num_digits, num_words)[:, 77].tolist() == [levels - 1] * num_digits
        else:
            with pytest.raises(ValueError, match="more than its digits"):
                kernel.unpack(data.tobytes(), x_BV, levels)


def test_what_is_too_large_by_a_multiple_of_a_piece_is_refused(kernel: ModuleType) -> None:
    """Kernels take words of 8 bytes apart in pieces of 32 bits, here of 7 digits."""
    assert oracle.layout(14, 17) == (1, 14, 8)
    with pytest.raises(ValueError, match="more than its digits"):
        kernel.unpack((17**7 << 32).to_bytes(8, "little"), np.empty((1, 14), np.uint8), 17)


def test_digits_beyond_the_last_value_are_refused(kernel: ModuleType) -> None:
    x_BV = np.empty((1, 9), np.uint8)  # words of 5 and 4 digits
    kernel.unpack(bytes([242, 80]), x_BV, 3)
    with pytest.raises(ValueError, match="more than its digits"):
        kernel.unpack(bytes([242, 81]), x_BV, 3)


@pytest.mark.parametrize(("levels", "num_digits", "num_bytes"), [(3, 5, 1), (9, 5, 2), (40, 3, 2)])
def test_every_word_gives_its_digits(kernel: ModuleType, levels: int, num_digits: int, num_bytes: int) -> None:
    assert oracle.layout(num_digits, levels) == (1, num_digits, num_bytes)
    word = np.arange(levels**num_digits, dtype="<u4")
    x_BV = np.empty((len(word), num_digits), np.uint8)
    kernel.unpack(word[:, None].view(np.uint8)[:, :num_bytes].tobytes(), x_BV, levels)
    assert np.array_equal(x_BV @ (levels ** np.arange(num_digits)), word)
