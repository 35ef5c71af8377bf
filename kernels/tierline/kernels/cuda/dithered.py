"""Launches of `dithered`: a scale, dithered symbols, then `radix`."""

from __future__ import annotations

from typing import ClassVar

from tierline.kernels.cuda import radix, scaled
from tierline.kernels.cuda.arrays import DeviceArray
from tierline.kernels.cuda.work import Coded, Errors, Room, Shape, Work, rows_of
from tierline.kernels.numpy.dithered import MAX_LEVELS, row_bytes
from tierline.kernels.numpy.scaled import BAD_HEADER, BAD_VALUE, HEADER_BYTES


class Dithered:
    """Options as in its token; the seed of a call is both ends'. Raises ValueError for others."""

    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    encode_errors: ClassVar[Errors] = ({1: BAD_VALUE}, {})
    decode_errors: ClassVar[Errors] = ({1: BAD_HEADER}, {1: radix.BAD_WORD})
    warm_byte: ClassVar[int] = 0x3F
    is_flat: ClassVar[bool] = False

    def __init__(self, *, levels: int = 15) -> None:
        if not (3 <= levels <= MAX_LEVELS and levels % 2):
            raise ValueError(f"levels is {levels}, an odd number from 3 to {MAX_LEVELS}")
        self._levels = levels

    def sizes(self, shape: Shape) -> tuple[int, int]:
        num_rows, num_values = rows_of(shape)
        num_bytes = num_rows * row_bytes(num_values, self._levels)
        return num_bytes, num_bytes

    def encode(self, work: Work, x: DeviceArray, room: Room) -> int:
        (num_rows, num_values), most = rows_of(x.shape), self._levels // 2
        num_bytes, stride = self.sizes(x.shape)[0], row_bytes(num_values, self._levels)
        out, bad = room(num_bytes)
        symbols = DeviceArray(work.take(x.size), x.shape, dtype="uint8")
        scaled.write(work, x.pointer, out, bad, num_rows, num_values, stride, most)
        sizes = (num_rows, num_values, stride)
        pointers = (x.pointer, out, symbols.pointer)
        work("tl_dithered_symbols", "pppnnniu", num_rows, (num_values + 3) // 4, *pointers, *sizes, most, work.seed)
        radix.pack(work, symbols, out + HEADER_BYTES, bad + 4, stride, self._levels)
        return num_bytes

    def decode(self, work: Work, data: Coded, x: DeviceArray, bad: int) -> None:
        (num_rows, num_values), most = rows_of(x.shape), self._levels // 2
        stride = row_bytes(num_values, self._levels)
        symbols = DeviceArray(work.take(x.size), x.shape, dtype="uint8")
        radix.unpack(work, data.device + HEADER_BYTES, symbols, bad + 4, stride, self._levels)
        pointers, sizes = (symbols.pointer, data.device, x.pointer, bad), (num_rows, num_values, stride)
        work("tl_dithered_values", "ppppnnniu", num_rows, (num_values + 3) // 4, *pointers, *sizes, most, work.seed)
