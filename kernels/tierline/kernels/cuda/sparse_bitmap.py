"""Launches of `sparse_bitmap`: which values are not zero, and those values, close together and in order.

Rows have values of their own number, so what codes them is launched once for each row, unless it codes each value by
itself. Their numbers are read back in between, eight bytes a row: only then it is known how much memory the packed
bytes take.
"""

from __future__ import annotations

from itertools import accumulate, pairwise

import numpy as np

from tierline.kernels.cuda.arrays import DeviceArray
from tierline.kernels.cuda.topk import bit_starts
from tierline.kernels.cuda.work import Coded, Errors, Room, Shape, Stage, Work, check_exact, rows_of
from tierline.kernels.numpy.sparse_bitmap import row_bytes
from tierline.kernels.sparse_bitmap import walk

_ALIGNED = 16  # of each row's bytes before they are put in place


class SparseBitmap:
    """Around what codes the values that are not zero. Raises ValueError where that does not code float32 rows."""

    def __init__(self, inner: Stage) -> None:
        check_exact(inner)
        self._inner = inner
        self.dtypes = ("float32",)
        self.warm_byte, self.is_flat = inner.warm_byte, False
        self.encode_errors: Errors = ({}, *inner.encode_errors)
        self.decode_errors: Errors = ({}, *inner.decode_errors)

    def sizes(self, shape: Shape) -> tuple[int, int]:
        num_rows, num_values = rows_of(shape)
        bitmap_bytes = row_bytes(num_values)
        return num_rows * bitmap_bytes, num_rows * (bitmap_bytes + self._inner_bytes(num_values))

    def encode(self, work: Work, x: DeviceArray, room: Room) -> int:
        num_rows, num_values = rows_of(x.shape)
        bitmap_bytes, num_blocks = row_bytes(num_values), (num_values + 511) // 512
        bitmap, sizes = work.take(num_rows * bitmap_bytes), (num_rows, num_values)
        work("tl_sparse_mark", "ppnn", num_rows, bitmap_bytes, x.pointer, bitmap, *sizes)
        starts = bit_starts(work, bitmap, *sizes)
        ends = work.read(starts, num_rows + 1, num_blocks)
        chosen = work.take(4 * ends[-1])
        pointers = (x.pointer, bitmap, starts, chosen)
        work("tl_sparse_gather", "ppppnn", num_rows, bitmap_bytes, *pointers, *sizes)
        numbers = [end - start for start, end in pairwise(ends)]
        runs, places, num_coded = self._runs(numbers)
        lengths = [self._inner_bytes(num_chosen) for num_chosen in numbers]
        out, bad = room(num_rows * bitmap_bytes + sum(lengths))
        coded, heads, bodies = work.take(num_coded), [], []
        done = 0
        for b, (place, length) in enumerate(zip(places, lengths, strict=True)):
            heads.append((b * bitmap_bytes, done, bitmap_bytes))
            bodies.append((place, done + bitmap_bytes, length))
            done += bitmap_bytes + length
        for first, num_chosen, place in runs:
            row = DeviceArray(chosen + 4 * first, (1, num_chosen))
            self._inner.encode(work, row, _room(coded + place, bad + 4))
        work.place(bitmap, out, heads)
        work.place(coded, out, bodies)
        return done

    def decode(self, work: Work, data: Coded, x: DeviceArray, bad: int) -> None:
        """Raises ValueError where bitmaps and the length of the data do not agree, and for set padding bits."""
        num_rows, num_values = rows_of(x.shape)
        bitmap_bytes = row_bytes(num_values)
        starts_B, number_B = walk(data.host, num_rows, num_values, self._inner_bytes)
        last_B = np.frombuffer(data.host, np.uint8)[starts_B + (bitmap_bytes - 1)]
        if (last_B & ((1 << -num_values % 8) - 1)).any():
            raise ValueError("padding bits are set")
        numbers = number_B.tolist()
        heads = [(start, b * bitmap_bytes, bitmap_bytes) for b, start in enumerate(starts_B.tolist())]
        bodies = [(at + bitmap_bytes, self._inner_bytes(num)) for (at, *_), num in zip(heads, numbers, strict=True)]
        runs, places, num_coded = self._runs(numbers)
        bitmap, coded, chosen = work.take(num_rows * bitmap_bytes), work.take(num_coded), work.take(4 * sum(numbers))
        work.place(data.device, bitmap, heads)
        work.place(data.device, coded, [(at, to, length) for (at, length), to in zip(bodies, places, strict=True)])
        for first, num_chosen, place in runs:
            row = DeviceArray(chosen + 4 * first, (1, num_chosen))
            self._inner.decode(work, Coded(coded + place), row, bad + 4)
        starts = bit_starts(work, bitmap, num_rows, num_values)
        pointers = (chosen, bitmap, starts, x.pointer)
        work("tl_sparse_scatter", "ppppnn", num_rows, bitmap_bytes, *pointers, num_rows, num_values)

    def _inner_bytes(self, num_chosen: int) -> int:
        return self._inner.sizes((1, num_chosen))[0] if num_chosen else 0

    def _runs(self, numbers: list[int]) -> tuple[list[tuple[int, int, int]], list[int], int]:
        """How rows of so many values are coded: runs by first value, values and place; each row's place; all bytes.

        A run is a row, aligned for its own sake, or all of them where values are coded one by one.
        """
        firsts = [0, *accumulate(numbers)]
        if self._inner.is_flat:
            places = [self._inner_bytes(first) for first in firsts]
            return [(0, firsts[-1], 0)] if firsts[-1] else [], places[:-1], places[-1]
        places = [0, *accumulate(-(-self._inner_bytes(num) // _ALIGNED) * _ALIGNED for num in numbers)]
        runs = [run for run in zip(firsts[:-1], numbers, places[:-1], strict=True) if run[1]]
        return runs, places[:-1], places[-1]


def _room(out: int, bad: int) -> Room:
    return lambda _: (out, bad)
