"""Launches of `affine`: the same entries as on the CPU, one after the other on a stream."""

from __future__ import annotations

import math
from typing import ClassVar

from tierline.kernels.cuda import affine_range
from tierline.kernels.cuda.arrays import DeviceArray
from tierline.kernels.cuda.work import Coded, Errors, Room, Shape, Work
from tierline.kernels.numpy import affine as oracle
from tierline.kernels.numpy.affine_clip import num_dropped


class Affine:
    """Options as in its token. Raises ValueError for others."""

    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    encode_errors: ClassVar[Errors] = ({1: "a value is NaN, infinite or above 2^126 in magnitude"},)
    decode_errors: ClassVar[Errors] = (
        {1: "a row's header holds no lo and scale that an encoder writes", 2: "padding bits are set"},
    )
    warm_byte: ClassVar[int] = 0x3F
    is_flat: ClassVar[bool] = False

    def __init__(
        self,
        *,
        bits: int = 8,
        per: str = "tensor",
        range: str = "minmax",  # the option's name on the wire
        percent: float = 99.9,
        rounding: str = "nearest",
    ) -> None:
        oracle.check_options(bits, percent, per=per, range=range, rounding=rounding)
        self._bits, self._range, self._percent = bits, range, percent
        self._by_channel, self._stochastic = per == "channel", rounding == "stochastic"

    def sizes(self, shape: Shape) -> tuple[int, int]:
        num_rows, num_values = self._rows(shape)
        num_bytes = num_rows * oracle.row_bytes(num_values, self._bits)
        return num_bytes, num_bytes

    def encode(self, work: Work, x: DeviceArray, room: Room) -> int:
        (num_rows, num_values), bits = self._rows(x.shape), self._bits
        groups, (num_bytes, _) = (num_values + 7) // 8, self.sizes(x.shape)
        out, bad = room(num_bytes)
        keys = work.take(8 * num_rows)

        def start() -> None:
            work("tl_affine_start", "pn", 1, num_rows, keys, num_rows)

        def headers() -> None:
            work("tl_affine_header", "pppnni", 1, num_rows, keys, out, bad, num_rows, num_values, bits)

        work("tl_affine_range", "ppnn", num_rows, groups, x.pointer, keys, num_rows, num_values, before=start)
        headers()  # which looks for values without a place
        if self._range == "percentile":
            dropped = num_dropped(num_values, self._percent)
            affine_range.percentile(work, x.pointer, keys, num_rows, num_values, dropped)
            headers()
        elif self._range == "mse":
            affine_range.least_error(work, x.pointer, keys, num_rows, num_values, bits)
            headers()
        if self._stochastic:
            random = (work.seed, num_rows // x.shape[0])
            common = (x.pointer, out, num_rows, num_values, bits)
            work("tl_affine_codes_stochastic", "ppnniun", num_rows, groups, *common, *random)
        else:
            work("tl_affine_codes", "ppnni", num_rows, groups, x.pointer, out, num_rows, num_values, bits)
        return num_bytes

    def decode(self, work: Work, data: Coded, x: DeviceArray, bad: int) -> None:
        num_rows, num_values = self._rows(x.shape)
        pointers, sizes = (data.device, x.pointer, bad), (num_rows, num_values)
        work("tl_affine_decode", "pppnni", num_rows, (num_values + 7) // 8, *pointers, *sizes, self._bits)

    def _rows(self, shape: Shape) -> tuple[int, int]:
        """Rows that a batch is coded as, and values in each."""
        axes = 2 if self._by_channel and len(shape) > 1 else 1
        return math.prod(shape[:axes]), math.prod(shape[axes:])
