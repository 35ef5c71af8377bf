"""Launches of `bitplane`: the same entries as on the CPU."""

from __future__ import annotations

import math
from ctypes import c_longlong, c_ulonglong
from typing import ClassVar

from tierline.kernels.cuda.launch import Launcher
from tierline.kernels.numpy import bitplane as oracle


class Bitplane:
    """Addresses are the GPU's; no scratch, no randomness."""

    encode_errors: ClassVar[dict[int, str]] = {1: "a value is NaN, which has no sign"}
    decode_errors: ClassVar[dict[int, str]] = {1: "padding bits are set"}

    def rows(self, shape: tuple[int, ...]) -> tuple[int, int]:
        return shape[0], math.prod(shape[1:])

    def num_bytes(self, shape: tuple[int, ...]) -> int:
        num_rows, num_values = self.rows(shape)
        return num_rows * oracle.row_bytes(num_values)

    def scratch_bytes(self, shape: tuple[int, ...]) -> int:
        return 0

    def encode(
        self, launch: Launcher, stream: int, shape: tuple[int, ...], x: int, out: int, bad: int, scratch: int, seed: int
    ) -> None:
        self._launch("tl_bitplane_encode", launch, stream, shape, x, out, bad)

    def decode(self, launch: Launcher, stream: int, shape: tuple[int, ...], data: int, x: int, bad: int) -> None:
        self._launch("tl_bitplane_decode", launch, stream, shape, data, x, bad)

    def _launch(self, entry: str, launch: Launcher, stream: int, shape: tuple[int, ...], *pointers: int) -> None:
        num_rows, num_values = self.rows(shape)
        counts = (c_longlong(num_rows), c_longlong(num_values))
        launch(entry, num_rows, oracle.row_bytes(num_values), stream, *map(c_ulonglong, pointers), *counts)
