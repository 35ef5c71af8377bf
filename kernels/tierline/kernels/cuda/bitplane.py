"""Launches of `bitplane`: the same entries as on the CPU."""

from __future__ import annotations

from typing import ClassVar

from tierline.kernels.cuda.arrays import DeviceArray
from tierline.kernels.cuda.work import Coded, Errors, Room, Shape, Work, rows_of
from tierline.kernels.numpy import bitplane as oracle


class Bitplane:
    """No scratch, no randomness."""

    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    encode_errors: ClassVar[Errors] = ({1: "a value is NaN, which has no sign"},)
    decode_errors: ClassVar[Errors] = ({1: "padding bits are set"},)
    warm_byte: ClassVar[int] = 0x3F
    is_flat: ClassVar[bool] = False

    def sizes(self, shape: Shape) -> tuple[int, int]:
        num_rows, num_values = rows_of(shape)
        num_bytes = num_rows * oracle.row_bytes(num_values)
        return num_bytes, num_bytes

    def encode(self, work: Work, x: DeviceArray, room: Room) -> int:
        num_bytes, _ = self.sizes(x.shape)
        out, bad = room(num_bytes)
        self._walk("tl_bitplane_encode", work, x, x.pointer, out, bad)
        return num_bytes

    def decode(self, work: Work, data: Coded, x: DeviceArray, bad: int) -> None:
        self._walk("tl_bitplane_decode", work, x, data.device, x.pointer, bad)

    def _walk(self, entry: str, work: Work, x: DeviceArray, *pointers: int) -> None:
        num_rows, num_values = rows_of(x.shape)
        work(entry, "pppnn", num_rows, oracle.row_bytes(num_values), *pointers, num_rows, num_values)
