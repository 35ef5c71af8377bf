"""`raw` on a GPU: a copy, for what `sparse_bitmap` and `topk` choose."""

from __future__ import annotations

import math
from typing import ClassVar

from tierline.kernels.cuda.arrays import DeviceArray
from tierline.kernels.cuda.work import Coded, Errors, Room, Shape, Work


class Raw:
    """float32 only: other dtypes need no GPU to be copied."""

    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    encode_errors: ClassVar[Errors] = ()
    decode_errors: ClassVar[Errors] = ()
    warm_byte: ClassVar[int] = 0x3F
    is_flat: ClassVar[bool] = True

    def sizes(self, shape: Shape) -> tuple[int, int]:
        num_bytes = 4 * math.prod(shape)
        return num_bytes, num_bytes

    def encode(self, work: Work, x: DeviceArray, room: Room) -> int:
        num_bytes, _ = self.sizes(x.shape)
        out, _ = room(num_bytes)
        work.move(x.pointer, 0, out, 0, 1, num_bytes)
        return num_bytes

    def decode(self, work: Work, data: Coded, x: DeviceArray, bad: int) -> None:
        work.move(data.device, 0, x.pointer, 0, 1, self.sizes(x.shape)[0])
