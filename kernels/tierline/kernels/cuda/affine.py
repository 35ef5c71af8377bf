"""Launches of `affine`: the same entries as on the CPU, one after the other on a stream."""

from __future__ import annotations

import math
from ctypes import c_int, c_longlong, c_ulonglong
from functools import partial
from typing import ClassVar

from tierline.kernels.cuda.launch import Launcher
from tierline.kernels.numpy import affine as oracle


class Affine:
    """`affine` over the whole range of each row; options as in its token.

    Addresses are the GPU's; `scratch` holds two int32 keys per row. Raises ValueError for other options.
    """

    encode_errors: ClassVar[dict[int, str]] = {1: "a value is NaN, infinite or above 2^126 in magnitude"}
    decode_errors: ClassVar[dict[int, str]] = {
        1: "a row's header holds no lo and scale that an encoder writes",
        2: "padding bits are set",
    }

    def __init__(self, bits: str = "8", per: str = "tensor", rounding: str = "nearest") -> None:
        known = bits in tuple("12345678"), per in ("tensor", "channel"), rounding in ("nearest", "stochastic")
        if not all(known):
            raise ValueError(f"affine: bits={bits} per={per} rounding={rounding} is not among what it can be")
        self._bits, self._by_channel, self._stochastic = int(bits), per == "channel", rounding == "stochastic"

    def rows(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows that a batch is coded as, and values in each."""
        axes = 2 if self._by_channel and len(shape) > 1 else 1
        return math.prod(shape[:axes]), math.prod(shape[axes:])

    def num_bytes(self, shape: tuple[int, ...]) -> int:
        num_rows, num_values = self.rows(shape)
        return num_rows * oracle.row_bytes(num_values, self._bits)

    def scratch_bytes(self, shape: tuple[int, ...]) -> int:
        return 8 * self.rows(shape)[0]

    def encode(
        self, launch: Launcher, stream: int, shape: tuple[int, ...], x: int, out: int, bad: int, scratch: int, seed: int
    ) -> None:
        num_rows, num_values = self.rows(shape)
        groups = (num_values + 7) // 8
        rows, values, bits = c_longlong(num_rows), c_longlong(num_values), c_int(self._bits)
        x_, out_, bad_, keys = c_ulonglong(x), c_ulonglong(out), c_ulonglong(bad), c_ulonglong(scratch)
        start = partial(launch, "tl_affine_start", 1, num_rows, stream, keys, rows)
        start()
        launch("tl_affine_range", num_rows, groups, stream, x_, keys, rows, values, before=start)
        launch("tl_affine_header", 1, num_rows, stream, keys, out_, bad_, rows, values, bits)
        if self._stochastic:
            key, num_streams = c_ulonglong(seed), c_longlong(num_rows // shape[0])
            launch(
                "tl_affine_codes_stochastic", num_rows, groups, stream, x_, out_, rows, values, bits, key, num_streams
            )
        else:
            launch("tl_affine_codes", num_rows, groups, stream, x_, out_, rows, values, bits)

    def decode(self, launch: Launcher, stream: int, shape: tuple[int, ...], data: int, x: int, bad: int) -> None:
        num_rows, num_values = self.rows(shape)
        rows, values, bits = c_longlong(num_rows), c_longlong(num_values), c_int(self._bits)
        data_, x_, bad_ = c_ulonglong(data), c_ulonglong(x), c_ulonglong(bad)
        launch("tl_affine_decode", num_rows, (num_values + 7) // 8, stream, data_, x_, bad_, rows, values, bits)
