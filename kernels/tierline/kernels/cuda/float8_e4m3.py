"""Launches of `float8_e4m3`."""

from __future__ import annotations

from typing import ClassVar

from tierline.kernels.cuda import scaled
from tierline.kernels.cuda.arrays import DeviceArray
from tierline.kernels.cuda.work import Coded, Errors, Room, Shape, Work, rows_of
from tierline.kernels.numpy.float8_e4m3 import BAD_VALUE, LARGEST, row_bytes
from tierline.kernels.numpy.scaled import BAD_HEADER
from tierline.kernels.numpy.scaled import BAD_VALUE as BAD_SCALED


class Float8E4M3:
    """Options as in its token. Raises ValueError for others."""

    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    warm_byte: ClassVar[int] = 0x3F

    def __init__(self, *, scale: str = "none") -> None:
        if scale not in ("none", "row"):
            raise ValueError(f"scale is {scale!r}, one of none, row")
        self._scaled = scale == "row"
        self.is_flat = not self._scaled
        self.encode_errors: Errors = ({1: BAD_SCALED if self._scaled else BAD_VALUE},)
        self.decode_errors: Errors = ({1: BAD_HEADER, 2: "a value behind a scale is NaN"},)

    def sizes(self, shape: Shape) -> tuple[int, int]:
        num_rows, num_values = rows_of(shape)
        num_bytes = num_rows * row_bytes(num_values, self._scaled)
        return num_bytes, num_bytes

    def encode(self, work: Work, x: DeviceArray, room: Room) -> int:
        (num_rows, num_values), (num_bytes, _) = rows_of(x.shape), self.sizes(x.shape)
        out, bad = room(num_bytes)
        if self._scaled:
            scaled.write(work, x.pointer, out, bad, num_rows, num_values, row_bytes(num_values, True), LARGEST)
            work("tl_float8_scaled_encode", "ppnn", num_rows, num_values, x.pointer, out, num_rows, num_values)
        else:
            size = x.size
            work("tl_float8_encode", "pppn", 1, size, x.pointer, out, bad, size)
        return num_bytes

    def decode(self, work: Work, data: Coded, x: DeviceArray, bad: int) -> None:
        num_rows, num_values = rows_of(x.shape)
        if self._scaled:
            sizes = (num_rows, num_values)
            work("tl_float8_scaled_decode", "pppnn", *sizes, data.device, x.pointer, bad, *sizes)
        else:
            size = x.size
            work("tl_float8_decode", "ppn", 1, size, data.device, x.pointer, size)
