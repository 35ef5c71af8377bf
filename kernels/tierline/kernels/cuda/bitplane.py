"""Launches of `bitplane`: the same entries as on the CPU."""

from __future__ import annotations

from ctypes import c_longlong, c_ulonglong

from tierline.kernels.cuda.launch import Launcher
from tierline.kernels.numpy import bitplane as oracle

ENCODE_ERRORS = {1: "a value is NaN, which has no sign"}
DECODE_ERRORS = {1: "padding bits are set"}


class Bitplane:
    """Addresses are the GPU's; no scratch."""

    encode_errors, decode_errors = ENCODE_ERRORS, DECODE_ERRORS

    def num_bytes(self, num_rows: int, num_values: int) -> int:
        return num_rows * oracle.row_bytes(num_values)

    def scratch_bytes(self, num_rows: int) -> int:
        return 0

    def encode(
        self, launch: Launcher, stream: int, x: int, out: int, bad: int, scratch: int, num_rows: int, num_values: int
    ) -> None:
        pointers = (c_ulonglong(x), c_ulonglong(out), c_ulonglong(bad))
        counts = (c_longlong(num_rows), c_longlong(num_values))
        launch("tl_bitplane_encode", num_rows, oracle.row_bytes(num_values), stream, *pointers, *counts)

    def decode(
        self, launch: Launcher, stream: int, data: int, x: int, bad: int, num_rows: int, num_values: int
    ) -> None:
        pointers = (c_ulonglong(data), c_ulonglong(x), c_ulonglong(bad))
        counts = (c_longlong(num_rows), c_longlong(num_values))
        launch("tl_bitplane_decode", num_rows, oracle.row_bytes(num_values), stream, *pointers, *counts)
