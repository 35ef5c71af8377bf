"""Launches of `bfloat16`."""

from __future__ import annotations

import math
from typing import ClassVar

from tierline.kernels.cuda.arrays import DeviceArray
from tierline.kernels.cuda.work import Coded, Errors, Room, Shape, Work


class Bfloat16:
    """A place for every float32."""

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
        work("tl_bfloat16_encode", "ppn", 1, size, x.pointer, out, size)
        return num_bytes

    def decode(self, work: Work, data: Coded, x: DeviceArray, bad: int) -> None:
        size = x.size
        work("tl_bfloat16_decode", "ppn", 1, size, data.device, x.pointer, size)
