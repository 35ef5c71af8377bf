"""Symbols of any alphabet near log2(levels) bits each: digits of base `levels`, as many to a word as fit its bytes.

A row of V symbols is W words of D digits: digit j (weight levels^j) of word w is value j * W + w, 0 behind the last.
Byte k (weight 256^k) of word w lies at k * W + w. So words beside each other are beside each other everywhere, which
lets a processor make many at once.

Shape legend, beside the package's: W words of one row.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]

MAX_LEVELS = 2**31 - 1
DTYPES = ("uint8", "int8", "uint16", "uint32", "int32", "float32")
"""Of the values; float32 holds integers."""

_MAX_WORD_BYTES = 8


class Layout(NamedTuple):
    """How the symbols of one row lie in words."""

    num_words: int
    num_digits: int
    word_bytes: int


@lru_cache(maxsize=1024)
def layout(num_values: int, levels: int) -> Layout:
    """Words of the size (1 to 8 bytes) that spends the fewest bits per digit, the smallest of these; then no larger
    than a row's digits need when they are spread evenly over its words."""
    if num_values == 0:
        return Layout(0, 0, 0)
    most_digits, _ = max(
        ((_digits(num_bytes, levels), num_bytes) for num_bytes in range(1, _MAX_WORD_BYTES + 1)),
        key=lambda choice: (choice[0] / choice[1], -choice[1]),
    )
    num_words = -(-num_values // most_digits)
    num_digits = -(-num_values // num_words)
    return Layout(num_words, num_digits, ((levels**num_digits - 1).bit_length() + 7) // 8)


def row_bytes(num_values: int, levels: int) -> int:
    num_words, _, word_bytes = layout(num_values, levels)
    return num_words * word_bytes


def fits(dtype: np.dtype[Any], levels: int, low: int) -> bool:
    """Whether every value from `low` to `low + levels - 1` is one of the dtype's, exactly."""
    least, most = (-(2**22), 2**22) if dtype.kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return bool(2 <= levels <= MAX_LEVELS and least <= low and low + levels - 1 <= most)


def pack(x_BV: Values, levels: int, low: int = 0) -> bytes:
    """Rows of packed symbols `x - low`. Raises ValueError for a value that is not of low .. low + levels - 1."""
    return pack_rows(x_BV, levels, low).tobytes()


def unpack(data: bytes, x_BV: Values, levels: int, low: int = 0) -> None:
    """Undo `pack`, into `x_BV`. Raises ValueError for a word that no packing makes."""
    num_rows, num_values = x_BV.shape
    unpack_rows(np.frombuffer(data, np.uint8).reshape(num_rows, row_bytes(num_values, levels)), x_BV, levels, low)


def pack_rows(x_BV: Values, levels: int, low: int = 0) -> Bytes:
    """`pack` as an array of uint8 (B, P)."""
    num_rows, num_values = x_BV.shape
    num_words, num_digits, word_bytes = layout(num_values, levels)
    symbol_BX = np.zeros((num_rows, num_words * num_digits), np.uint64)
    inside = (x_BV >= low) & (x_BV <= low + levels - 1)
    if x_BV.dtype.kind == "f":
        inside &= np.rint(x_BV) == x_BV
    if not inside.all():
        raise ValueError(f"a value is not an integer from {low} to {low + levels - 1}")
    symbol_BX[:, :num_values] = x_BV.astype(np.int64) - low
    symbol_BDW = symbol_BX.reshape(num_rows, num_digits, num_words)
    word_BW = np.zeros((num_rows, num_words), np.uint64)
    for j in reversed(range(num_digits)):
        word_BW *= np.uint64(levels)
        word_BW += symbol_BDW[:, j]
    byte_BWk = word_BW.astype("<u8")[:, :, None].view(np.uint8)[:, :, :word_bytes]
    return np.ascontiguousarray(byte_BWk.transpose(0, 2, 1)).reshape(num_rows, num_words * word_bytes)


def unpack_rows(packed_BP: Bytes, x_BV: Values, levels: int, low: int = 0) -> None:
    """`unpack` of an array of uint8 (B, P)."""
    num_rows, num_values = x_BV.shape
    num_words, num_digits, word_bytes = layout(num_values, levels)
    byte_BWk = np.zeros((num_rows, num_words, 8), np.uint8)
    byte_BWk[:, :, :word_bytes] = packed_BP.reshape(num_rows, word_bytes, num_words).transpose(0, 2, 1)
    word_BW = byte_BWk.view("<u8")[:, :, 0].astype(np.uint64)
    symbol_BDW = np.empty((num_rows, num_digits, num_words), np.uint64)
    for j in range(num_digits):
        np.remainder(word_BW, np.uint64(levels), out=symbol_BDW[:, j])
        word_BW //= np.uint64(levels)
    symbol_BX = symbol_BDW.reshape(num_rows, num_digits * num_words)
    if word_BW.any() or symbol_BX[:, num_values:].any():
        raise ValueError("a word holds more than its digits")
    x_BV[...] = symbol_BX[:, :num_values].astype(np.int64) + low


def _digits(num_bytes: int, levels: int) -> int:
    """How many digits fit that many bytes."""
    count = 0
    while levels ** (count + 1) <= 256**num_bytes:
        count += 1
    return count
