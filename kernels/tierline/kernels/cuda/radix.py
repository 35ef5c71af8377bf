"""Launches of `radix`, also for the symbols of `dithered`."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from tierline.kernels.cuda.arrays import DeviceArray
from tierline.kernels.cuda.work import Coded, Errors, Room, Shape, Work, rows_of
from tierline.kernels.numpy.radix import MAX_LEVELS, fits, layout, row_bytes

BAD_WORD = "a word holds more than its digits"

_ENTRIES = {"float32": "f32", "uint8": "u8", "int8": "u8", "int32": "u32"}


class Radix:
    """Options as in its token; a batch's dtype decides at each call. Raises ValueError for others."""

    warm_byte: ClassVar[int] = 0
    is_flat: ClassVar[bool] = False

    def __init__(self, *, levels: int = 3, low: int = 0) -> None:
        if not 2 <= levels <= MAX_LEVELS:
            raise ValueError(f"levels is {levels}, from 2 to {MAX_LEVELS}")
        self.dtypes = tuple(name for name in _ENTRIES if fits(np.dtype(name), levels, low))
        if not self.dtypes:
            raise ValueError(f"low is {low}, but no dtype holds all of {low} to {low + levels - 1}")
        self._levels, self._low = levels, low
        self.encode_errors: Errors = ({1: f"a value is not an integer from {low} to {low + levels - 1}"},)
        self.decode_errors: Errors = ({1: BAD_WORD},)

    def sizes(self, shape: Shape) -> tuple[int, int]:
        num_rows, num_values = rows_of(shape)
        num_bytes = num_rows * row_bytes(num_values, self._levels)
        return num_bytes, num_bytes

    def encode(self, work: Work, x: DeviceArray, room: Room) -> int:
        num_bytes, _ = self.sizes(x.shape)
        out, bad = room(num_bytes)
        pack(work, x, out, bad, row_bytes(rows_of(x.shape)[1], self._levels), self._levels, self._low)
        return num_bytes

    def decode(self, work: Work, data: Coded, x: DeviceArray, bad: int) -> None:
        unpack(work, data.device, x, bad, row_bytes(rows_of(x.shape)[1], self._levels), self._levels, self._low)


def pack(work: Work, x: DeviceArray, out: int, bad: int, stride: int, levels: int, low: int = 0) -> None:
    """Rows to addresses `stride` bytes apart; flag 1 where a value is none of the alphabet."""
    _walk(work, f"tl_radix_pack_{_ENTRIES[x.dtype]}", x, (x.pointer, out, bad), stride, levels, low)


def unpack(work: Work, data: int, x: DeviceArray, bad: int, stride: int, levels: int, low: int = 0) -> None:
    """Rows from addresses `stride` bytes apart; flag 1 where a word is none that packing makes."""
    _walk(work, f"tl_radix_unpack_{_ENTRIES[x.dtype]}", x, (data, x.pointer, bad), stride, levels, low)


def _walk(
    work: Work, entry: str, x: DeviceArray, pointers: tuple[int, int, int], stride: int, levels: int, low: int
) -> None:
    num_rows, num_values = rows_of(x.shape)
    words = layout(num_values, levels)
    work(entry, "pppnnnniiii", num_rows, words.num_words, *pointers, num_rows, num_values, stride, *words, low, levels)
