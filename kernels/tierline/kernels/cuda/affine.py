"""Launches of `affine`: the same entries as on the CPU, one after the other on a stream."""

from __future__ import annotations

from ctypes import c_int, c_longlong, c_ulonglong

from tierline.kernels.cuda.launch import Launcher
from tierline.kernels.numpy import affine as oracle

ENCODE_ERRORS = {1: "a value is NaN, infinite or above 2^126 in magnitude"}
DECODE_ERRORS = {1: "a row's header holds no lo and scale that an encoder writes", 2: "padding bits are set"}


class Affine:
    """`affine` with 1 to 8 bits. Addresses are the GPU's; `scratch` holds two int32 keys per row."""

    encode_errors, decode_errors = ENCODE_ERRORS, DECODE_ERRORS

    def __init__(self, bits: int = 8) -> None:
        if not 1 <= bits <= 8:
            raise ValueError(f"affine: bits is {bits}, from 1 to 8")
        self._bits = bits

    def num_bytes(self, num_rows: int, num_values: int) -> int:
        return num_rows * oracle.row_bytes(num_values, self._bits)

    def scratch_bytes(self, num_rows: int) -> int:
        return 8 * num_rows

    def encode(
        self, launch: Launcher, stream: int, x: int, out: int, bad: int, scratch: int, num_rows: int, num_values: int
    ) -> None:
        groups = (num_values + 7) // 8
        rows, values, bits = c_longlong(num_rows), c_longlong(num_values), c_int(self._bits)
        x_, out_, bad_, keys = c_ulonglong(x), c_ulonglong(out), c_ulonglong(bad), c_ulonglong(scratch)
        launch("tl_affine_start", 1, num_rows, stream, keys, rows)
        launch("tl_affine_range", num_rows, groups, stream, x_, keys, rows, values)
        launch("tl_affine_header", 1, num_rows, stream, keys, out_, bad_, rows, values, bits)
        launch("tl_affine_codes", num_rows, groups, stream, x_, out_, rows, values, bits)

    def decode(
        self, launch: Launcher, stream: int, data: int, x: int, bad: int, num_rows: int, num_values: int
    ) -> None:
        rows, values, bits = c_longlong(num_rows), c_longlong(num_values), c_int(self._bits)
        data_, x_, bad_ = c_ulonglong(data), c_ulonglong(x), c_ulonglong(bad)
        launch("tl_affine_decode", num_rows, (num_values + 7) // 8, stream, data_, x_, bad_, rows, values, bits)
