"""Launches of `float16` and `bfloat16`."""

from __future__ import annotations

import math
from typing import ClassVar

from tierline.kernels.cuda.arrays import DeviceArray
from tierline.kernels.cuda.work import Coded, Errors, Room, Shape, Work


class Float16:
    """A place for every float32."""

    entry: ClassVar[str] = "tl_float16"
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    encode_errors: ClassVar[Errors] = ()
    decode_errors: ClassVar[Errors] = ()
    warm_byte: ClassVar[int] = 0x3F
    is_flat: ClassVar[bool] = True

    def sizes(self, shape: Shape) -> tuple[int, int]:
        num_bytes = 2 * math.prod(shape)
        return num_bytes, num_bytes

    def encode(self, work: Work, x: DeviceArray, room: Room) -> int:
        size, (num_bytes, _) = x.size, self.sizes(x.shape)
        out, _ = room(num_bytes)
        work(f"{self.entry}_encode", "ppn", 1, size, x.pointer, out, size)
        return num_bytes

    def decode(self, work: Work, data: Coded, x: DeviceArray, bad: int) -> None:
        size = x.size
        work(f"{self.entry}_decode", "ppn", 1, size, data.device, x.pointer, size)


class Bfloat16(Float16):
    """The same of the other format."""

    entry: ClassVar[str] = "tl_bfloat16"
