"""Launches of `sparse_bitmap`: which values are not zero, and those values, close together and in order.

Rows have values of their own number, so what codes them is launched once for each row. Their numbers are read back
in between, eight bytes a row: only then it is known how much memory the packed bytes take.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from tierline.kernels.cuda.arrays import DeviceArray
from tierline.kernels.cuda.topk import bit_starts
from tierline.kernels.cuda.work import Coded, Errors, Room, Shape, Stage, Work, check_exact, rows_of
from tierline.kernels.numpy.sparse_bitmap import row_bytes
from tierline.kernels.sparse_bitmap import count

_ALIGNED = 16  # of each row's bytes before they are put in place


class SparseBitmap:
    """Around what codes the values that are not zero. Raises ValueError where that does not code float32 rows."""

    def __init__(self, inner: Stage) -> None:
        check_exact(inner)
        self._inner = inner
        self.dtypes = ("float32",)
        self.warm_byte = inner.warm_byte
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
        rows = [(start, end - start) for start, end in pairwise(ends)]
        lengths = [self._inner_bytes(num_chosen) for _, num_chosen in rows]
        out, bad = room(num_rows * bitmap_bytes + sum(lengths))
        coded, heads, bodies = work.take(sum(map(_aligned, lengths))), [], []
        at = done = 0
        for b, ((start, num_chosen), length) in enumerate(zip(rows, lengths, strict=True)):
            heads.append((b * bitmap_bytes, done, bitmap_bytes))
            if num_chosen:
                place = (coded + at, bad + 4)
                self._inner.encode(work, DeviceArray(chosen + 4 * start, (1, num_chosen)), _room(place))
                bodies.append((at, done + bitmap_bytes, length))
            at, done = at + _aligned(length), done + bitmap_bytes + length
        work.place(bitmap, out, heads)
        work.place(coded, out, bodies)
        return done

    def decode(self, work: Work, data: Coded, x: DeviceArray, bad: int) -> None:
        """Raises ValueError where bitmaps and the length of the data do not agree, and for set padding bits."""
        num_rows, num_values = rows_of(x.shape)
        bitmap_bytes = row_bytes(num_values)
        heads, bodies, rows = [], [], []
        at = done = start = 0
        for b in range(num_rows):
            bitmap_1P = np.frombuffer(data.host[done : done + bitmap_bytes], np.uint8)[None]
            if bitmap_1P.size < bitmap_bytes:
                break
            if num_values % 8 and bitmap_1P[0, -1] & ((1 << -num_values % 8) - 1):
                raise ValueError("padding bits are set")
            num_chosen = int(count(bitmap_1P)[0])
            length = self._inner_bytes(num_chosen)
            heads.append((done, b * bitmap_bytes, bitmap_bytes))
            if num_chosen:
                bodies.append((done + bitmap_bytes, at, length))
                rows.append((at, start, num_chosen))
            at, done, start = at + _aligned(length), done + bitmap_bytes + length, start + num_chosen
        if len(heads) < num_rows or done != len(data.host):
            raise ValueError(f"{len(data.host)} bytes of data, not what bitmaps of {num_rows} rows need")
        bitmap, coded, chosen = work.take(num_rows * bitmap_bytes), work.take(at), work.take(4 * start)
        work.place(data.device, bitmap, heads)
        work.place(data.device, coded, bodies)
        for place, first, num_chosen in rows:
            row = DeviceArray(chosen + 4 * first, (1, num_chosen))
            self._inner.decode(work, Coded(coded + place), row, bad + 4)
        starts = bit_starts(work, bitmap, num_rows, num_values)
        pointers = (chosen, bitmap, starts, x.pointer)
        work("tl_sparse_scatter", "ppppnn", num_rows, bitmap_bytes, *pointers, num_rows, num_values)

    def _inner_bytes(self, num_chosen: int) -> int:
        return self._inner.sizes((1, num_chosen))[0] if num_chosen else 0


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNED) * _ALIGNED


def _room(place: tuple[int, int]) -> Room:
    return lambda _: place
