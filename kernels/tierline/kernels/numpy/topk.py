"""The k largest magnitudes of each row, and their positions in few bits.

Positions are written as a bitmap, or after Elias and Fano (P. Elias, Efficient storage and retrieval by content and
address of static files, 1974), whichever is smaller for V and k: of each position the lowest `low_bits` bits as they
are, then the rest in unary, the i-th position's set bit at place `(position >> low_bits) + i`.
"""

from __future__ import annotations

import numpy as np

from tierline.kernels.numpy.sparse_bitmap import Bytes, Floats, count, padding_is_clear
from tierline.kernels.numpy.sparse_bitmap import row_bytes as bitmap_bytes

__all__ = ["choose", "num_high_bits", "num_low_bits", "pack_positions", "positions_bytes", "unpack_positions"]

BAD_VALUE = "a row has more than {} values that are NaN or infinite"


def choose(x_BV: Floats, num_chosen: int) -> Bytes:
    """Bitmap of the `num_chosen` (from 1 to V) largest magnitudes of each row; of equal ones the first.

    Raises ValueError where a NaN or an infinity would be dropped.
    """
    key_BV = x_BV.view(np.int32) & np.int32(0x7FFFFFFF)
    order_BV = np.argsort(-key_BV, axis=1, kind="stable")
    if (np.take_along_axis(key_BV, order_BV[:, num_chosen:], axis=1) >= 0x7F800000).any():
        raise ValueError(BAD_VALUE.format(num_chosen))
    chosen_BV = np.zeros(x_BV.shape, np.bool_)
    np.put_along_axis(chosen_BV, order_BV[:, :num_chosen], True, axis=1)
    return np.packbits(chosen_BV, axis=1)


def positions_bytes(num_values: int, num_chosen: int) -> int:
    """What the positions of a row take, from 1 to V of them."""
    low_bits = num_low_bits(num_values, num_chosen)
    if low_bits is None:
        return bitmap_bytes(num_values)
    return _elias_fano_bytes(num_values, num_chosen, low_bits)


def pack_positions(bitmap_BP: Bytes, num_values: int, num_chosen: int) -> Bytes:
    """From a bitmap with `num_chosen` bits set in each row."""
    low_bits = num_low_bits(num_values, num_chosen)
    if low_bits is None:
        return bitmap_BP
    mark_BV = np.unpackbits(bitmap_BP, axis=1, count=num_values)
    position_Bk = np.nonzero(mark_BV)[1].reshape(-1, num_chosen)
    low_Bkl = (position_Bk[:, :, None] >> np.arange(low_bits)) & 1
    high_BX = np.zeros((len(bitmap_BP), num_high_bits(num_values, num_chosen, low_bits)), np.uint8)
    np.put_along_axis(high_BX, (position_Bk >> low_bits) + np.arange(num_chosen), 1, axis=1)
    parts = (low_Bkl.astype(np.uint8).reshape(len(bitmap_BP), num_chosen * low_bits), high_BX)
    return np.concatenate([np.packbits(part, axis=1, bitorder="little") for part in parts], axis=1)


def unpack_positions(packed_BQ: Bytes, num_values: int, num_chosen: int) -> Bytes:
    """Undo `pack_positions`. Raises ValueError for positions that are not `num_chosen`, ascending and below V."""
    low_bits = num_low_bits(num_values, num_chosen)
    num_rows = len(packed_BQ)
    if low_bits is None:
        if not padding_is_clear(packed_BQ, num_values):
            raise ValueError("padding bits are set")
        if (count(packed_BQ) != num_chosen).any():
            raise ValueError(f"a row has not {num_chosen} positions")
        return packed_BQ
    num_low_bytes = (num_chosen * low_bits + 7) // 8
    low_BX = np.unpackbits(packed_BQ[:, :num_low_bytes], axis=1, bitorder="little")
    high_BX = np.unpackbits(packed_BQ[:, num_low_bytes:], axis=1, bitorder="little")
    if low_BX[:, num_chosen * low_bits :].any() or high_BX[:, num_high_bits(num_values, num_chosen, low_bits) :].any():
        raise ValueError("padding bits are set")
    if (high_BX.sum(axis=1, dtype=np.int64) != num_chosen).any():
        raise ValueError(f"a row has not {num_chosen} positions")
    low_Bkl = low_BX[:, : num_chosen * low_bits].reshape(num_rows, num_chosen, low_bits)
    high_Bk = np.nonzero(high_BX)[1].reshape(num_rows, num_chosen) - np.arange(num_chosen)
    position_Bk = (high_Bk << low_bits) | (low_Bkl.astype(np.int64) << np.arange(low_bits)).sum(axis=2)
    if (position_Bk[:, -1] >= num_values).any() or (np.diff(position_Bk, axis=1) <= 0).any():
        raise ValueError("positions do not ascend, or lie behind the row's end")
    mark_BV = np.zeros((num_rows, num_values), np.uint8)
    np.put_along_axis(mark_BV, position_Bk, 1, axis=1)
    return np.packbits(mark_BV, axis=1)


def num_low_bits(num_values: int, num_chosen: int) -> int | None:
    """The number that makes the smallest row, or None where a bitmap is not larger."""
    sizes = [_elias_fano_bytes(num_values, num_chosen, bits) for bits in range(max(num_values - 1, 1).bit_length() + 1)]
    best = sizes.index(min(sizes))
    return best if sizes[best] < bitmap_bytes(num_values) else None


def _elias_fano_bytes(num_values: int, num_chosen: int, low_bits: int) -> int:
    return (num_chosen * low_bits + 7) // 8 + (num_high_bits(num_values, num_chosen, low_bits) + 7) // 8


def num_high_bits(num_values: int, num_chosen: int, low_bits: int) -> int:
    """Of the unary part of a row."""
    return num_chosen + ((num_values - 1) >> low_bits)
