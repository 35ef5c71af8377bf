"""Launches of `topk`: the k-th largest magnitude by three histograms, ties in order, then positions and values."""

from __future__ import annotations

import math

from tierline.kernels.cuda.arrays import DeviceArray
from tierline.kernels.cuda.work import Coded, Errors, Room, Shape, Stage, Work, check_exact, rows_of
from tierline.kernels.numpy.sparse_bitmap import row_bytes as bitmap_bytes
from tierline.kernels.numpy.topk import num_high_bits, num_low_bits, positions_bytes

_BINS = 2048
_SHIFTS = (22, 11, 0)
_ROWS_AT_ONCE = 256


class Topk:
    """Options as in its token, around what codes the values chosen. Raises ValueError for others."""

    def __init__(self, inner: Stage, *, share: float = 0.05, count: int = 0) -> None:
        if not (0 < share <= 1 and count >= 0):
            raise ValueError(
                f"share is {share}, above 0 and at most 1; count is {count}, at least 1 (or 0: share decides)"
            )
        check_exact(inner)
        self._inner, self._share, self._count = inner, share, count
        self.dtypes = ("float32",)
        self.warm_byte, self.is_flat = inner.warm_byte, False
        self.encode_errors: Errors = (
            {1: "a row has more values that are NaN or infinite than are kept"},
            *inner.encode_errors,
        )
        wrong = {
            1: "padding bits are set",
            2: "a row has another number of positions",
            4: "positions do not ascend, or lie behind the row's end",
        }
        self.decode_errors: Errors = (wrong, *inner.decode_errors)

    def sizes(self, shape: Shape) -> tuple[int, int]:
        num_rows, num_values = rows_of(shape)
        if num_rows * num_values == 0:
            return 0, 0
        num_chosen = self._num_chosen(num_values)
        num_bytes = num_rows * (positions_bytes(num_values, num_chosen) + self._inner.sizes((1, num_chosen))[0])
        return num_bytes, num_bytes

    def encode(self, work: Work, x: DeviceArray, room: Room) -> int:
        num_rows, num_values = rows_of(x.shape)
        num_chosen, num_bytes = self._num_chosen(num_values), self.sizes(x.shape)[0]
        out, bad = room(num_bytes)
        bitmap = self._choose(work, x, num_chosen, bad)
        positions = _listed(work, bitmap, bad, num_rows, num_values, num_chosen)
        chosen = DeviceArray(work.take(4 * num_rows * num_chosen), (num_rows, num_chosen))
        sizes = (num_rows, num_values, num_chosen)
        work("tl_topk_gather", "pppnnn", num_rows, num_chosen, x.pointer, positions, chosen.pointer, *sizes)
        inner_bytes = self._inner.sizes((1, num_chosen))[0]
        coded = work.take(num_rows * inner_bytes)
        self._inner.encode(work, chosen, lambda _: (coded, bad + 4))
        head_bytes, stride = positions_bytes(num_values, num_chosen), num_bytes // num_rows
        work.move(coded, inner_bytes, out + head_bytes, stride, num_rows, inner_bytes)
        low = num_low_bits(num_values, num_chosen)
        if low is None:
            work.move(bitmap, head_bytes, out, stride, num_rows, head_bytes)
        else:
            low_bytes = (num_chosen * low + 7) // 8
            layout = (num_rows, num_chosen, stride, low, low_bytes, head_bytes)
            work("tl_topk_pack", "ppnnninn", num_rows, head_bytes, positions, out, *layout)
        return num_bytes

    def decode(self, work: Work, data: Coded, x: DeviceArray, bad: int) -> None:
        num_rows, num_values = rows_of(x.shape)
        num_chosen = self._num_chosen(num_values)
        head_bytes, inner_bytes = positions_bytes(num_values, num_chosen), self._inner.sizes((1, num_chosen))[0]
        stride = head_bytes + inner_bytes
        coded = work.take(num_rows * inner_bytes)
        work.move(data.device + head_bytes, stride, coded, inner_bytes, num_rows, inner_bytes)
        chosen = DeviceArray(work.take(4 * num_rows * num_chosen), (num_rows, num_chosen))
        self._inner.decode(work, Coded(coded), chosen, bad + 4)
        low = num_low_bits(num_values, num_chosen)
        if low is None:
            bitmap = work.take(num_rows * head_bytes)
            work.move(data.device, stride, bitmap, head_bytes, num_rows, head_bytes)
            positions = _listed(work, bitmap, bad, num_rows, num_values, num_chosen)
        else:
            positions = _unpacked(work, data.device, stride, bad, num_rows, num_values, num_chosen, low)
        work.clear(x.pointer, 4 * x.size)
        sizes = (num_rows, num_values, num_chosen)
        pointers = (chosen.pointer, positions, x.pointer, bad)
        work("tl_topk_scatter", "ppppnnn", num_rows, num_chosen, *pointers, *sizes)

    def _num_chosen(self, num_values: int) -> int:
        return min(self._count or math.ceil(self._share * num_values), num_values)

    def _choose(self, work: Work, x: DeviceArray, num_chosen: int, bad: int) -> int:
        """Address of a bitmap with `num_chosen` bits set in each row."""
        num_rows, num_values = rows_of(x.shape)
        head_bytes = bitmap_bytes(num_values)
        least, left = work.take(4 * num_rows), work.take(4 * num_rows)
        some = min(num_rows, _ROWS_AT_ONCE)
        counts, found, wanted = work.take(4 * _BINS * some), work.take(8 * some), work.take(8 * some)
        for first in range(0, num_rows, some):
            rows, here = min(some, num_rows - first), x.pointer + 4 * first * num_values
            work.clear(found, 4 * rows)
            work("tl_rows_fill", "pnii", 1, rows, wanted, rows, num_chosen, num_chosen)
            for turn, shift in enumerate(_SHIFTS):
                given = (found + 4 * some * (turn % 2), wanted + 4 * some * (turn % 2))
                made = (found + 4 * some * (1 - turn % 2), wanted + 4 * some * (1 - turn % 2))
                if shift == 0:
                    made = (least + 4 * first, left + 4 * first)
                clear = work.clearing(counts, 4 * _BINS * rows)
                sizes = (rows, num_values, shift)
                work("tl_topk_histogram", "pppnni", rows, num_values, here, given[0], counts, *sizes, before=clear)
                work("tl_topk_digit", "pppppn", 1, rows, counts, *given, *made, rows)
        equal, bitmap = work.take(num_rows * head_bytes), work.take(num_rows * head_bytes)
        work("tl_topk_equal", "pppnn", num_rows, head_bytes, x.pointer, least, equal, num_rows, num_values)
        starts = bit_starts(work, equal, num_rows, num_values)
        pointers = (x.pointer, least, left, equal, starts, bitmap, bad)
        work("tl_topk_keep", "pppppppnn", num_rows, head_bytes, *pointers, num_rows, num_values)
        return bitmap


def bit_starts(work: Work, bitmap: int, num_rows: int, num_values: int) -> int:
    """How many bits are set before each block of 512, over all rows; one more than there are blocks."""
    num_blocks = (num_values + 511) // 512
    counts = work.take(8 * num_rows * num_blocks)
    work("tl_sparse_count", "ppnn", num_rows, num_blocks, bitmap, counts, num_rows, num_values)
    return work.starts(counts, num_rows * num_blocks)


def _listed(work: Work, bitmap: int, bad: int, num_rows: int, num_values: int, num_chosen: int) -> int:
    """Positions (int32) of set bits, `num_chosen` in each row."""
    starts, positions = bit_starts(work, bitmap, num_rows, num_values), work.take(4 * num_rows * num_chosen)
    sizes = (num_rows, num_values, num_chosen)
    work("tl_topk_list", "ppppnnn", num_rows, bitmap_bytes(num_values), bitmap, starts, positions, bad, *sizes)
    return positions


def _unpacked(
    work: Work, data: int, stride: int, bad: int, num_rows: int, num_values: int, num_chosen: int, low: int
) -> int:
    """Positions that `tl_topk_pack` packed, as far as they are there."""
    low_bytes, num_high = (num_chosen * low + 7) // 8, num_high_bits(num_values, num_chosen, low)
    high_bytes = (num_high + 7) // 8
    high = work.take(num_rows * high_bytes)
    work.move(data + low_bytes, stride, high, high_bytes, num_rows, high_bytes)
    starts, positions = bit_starts(work, high, num_rows, 8 * high_bytes), work.take(4 * num_rows * num_chosen)
    pointers, layout = (data, high, starts, positions, bad), (num_rows, num_chosen, stride, low, num_high)
    work("tl_topk_unpack", "pppppnnnin", num_rows, high_bytes, *pointers, *layout)
    return positions
