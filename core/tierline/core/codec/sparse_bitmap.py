"""Zeros, as a ReLU leaves them, at one bit each: which values are not zero, then those values coded by another codec.

Bytes of one row, rows one after the other: ceil(V / 8) bytes of bitmap, first value in the most significant bit,
padding bits 0; then the n values whose bit is set, in their order, as one row of n values of the wrapped codec (`raw`
unless named), and nothing where n = 0. The wrapped codec's size must follow from n, so rows delimit themselves. -0.0
is a zero and decodes as +0.0. NaN and infinities are no zeros: the wrapped codec keeps or refuses them.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from tierline.core.codec._check import (
    RowSize,
    check_between,
    check_head,
    exact_inner,
    float_rows,
    inner_bytes,
    result,
    wrapped_token,
)
from tierline.core.errors import CorruptPayload
from tierline.core.protocols import Codec
from tierline.core.types import Array, Payload, TensorSpec
from tierline.kernels import sparse_bitmap as kernel


class SparseBitmap:
    """Codec `sparse_bitmap`."""

    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    role: ClassVar[str] = "select"

    def __init__(self, inner: Codec) -> None:
        self._inner = exact_inner(inner, "sparse_bitmap")
        self.token = wrapped_token("sparse_bitmap", inner)
        self._law: RowSize | None = getattr(inner, "row_size", None)
        self._is_flat = self._law is not None and self._law.is_flat

    def encode(self, x_B: Array, *, seed: int = 0) -> Payload:
        rows_BV = float_rows(x_B, self.token)
        bitmap_BP = kernel.mark(rows_BV)
        number_B = kernel.count(bitmap_BP)
        values = kernel.gather(rows_BV, bitmap_BP)
        size_B, firsts_B = self._sizes(number_B), _before(number_B)
        num_bytes = bitmap_BP.shape[1]
        starts_B = _before(size_B + num_bytes)
        data = np.empty(len(number_B) * num_bytes + int(size_B.sum()), np.uint8)
        every_B = np.arange(len(number_B)) * num_bytes
        kernel.place(bitmap_BP.reshape(-1), data, every_B, starts_B, np.full_like(starts_B, num_bytes))
        params: dict[str, float] = {}
        runs = getattr(self._inner, "encode_runs", None)
        in_one = runs is not None and runs(values, number_B, data, starts_B + num_bytes, seed=seed)
        for rows_R in () if in_one else self._groups(number_B):
            coded = self._inner.encode(_batch(values, number_B, firsts_B, rows_R, self._is_flat), seed=seed)
            params = dict(coded.params)  # of the seed and the options alone: equal for all rows
            source, size_R = np.frombuffer(coded.data, np.uint8), size_B[rows_R]
            _place(source, data, _before(size_R), starts_B[rows_R] + num_bytes, size_R)
        return Payload(self.token, "float32", x_B.shape, data.tobytes(), params)

    def decode(self, payload: Payload, limit: TensorSpec, *, max_rows: int = 4096, out: Array | None = None) -> Array:
        num_rows = check_head(payload, self.token, self.dtypes, limit, max_rows)
        num_values = math.prod(limit.shape)
        check_between(payload, *self.size_bounds(limit, num_rows))
        if num_rows * num_values == 0:
            return result(out, num_rows, limit)
        try:
            starts_B, number_B = kernel.walk(payload.data, num_rows, num_values, self._inner_bytes, self._law)
        except ValueError as error:
            raise CorruptPayload(f"{self.token}: {error}") from None
        data, num_bytes = np.frombuffer(payload.data, np.uint8), kernel.row_bytes(num_values)
        bitmap_BP = np.empty((num_rows, num_bytes), np.uint8)
        kernel.place(
            data, bitmap_BP.reshape(-1), starts_B, np.arange(num_rows) * num_bytes, np.full_like(starts_B, num_bytes)
        )
        if not kernel.padding_is_clear(bitmap_BP, num_values):
            raise CorruptPayload(f"{self.token}: padding bits are set")
        x_B = result(out, num_rows, limit)
        values = np.empty(int(number_B.sum()), np.float32)
        size_B, firsts_B = self._sizes(number_B), _before(number_B)
        runs = getattr(self._inner, "decode_runs", None)
        in_one = runs is not None and runs(payload.data, starts_B + num_bytes, number_B, values)
        for rows_R in () if in_one else self._groups(number_B):
            size_R, length_R = size_B[rows_R], 4 * number_B[rows_R]
            coded = np.empty(int(size_R.sum()), np.uint8)
            _place(data, coded, starts_B[rows_R] + num_bytes, _before(size_R), size_R)
            shape = (1, len(values)) if self._is_flat else (len(rows_R), int(number_B[rows_R[0]]))
            row = Payload(self._inner.token, "float32", shape, coded.tobytes(), payload.params)
            batch = self._inner.decode(row, TensorSpec("float32", shape[1:]), max_rows=shape[0])
            _place(_bytes(batch), _bytes(values), _before(length_R), 4 * firsts_B[rows_R], length_R)
        kernel.scatter(values, bitmap_BP, x_B.reshape(num_rows, num_values))
        return x_B

    def max_error(self, x_B: Array) -> float:
        """That of the wrapped codec on the values that are not zero."""
        rows_BV = float_rows(x_B, self.token)
        bitmap_BP = kernel.mark(rows_BV)
        number_B, values = kernel.count(bitmap_BP), kernel.gather(rows_BV, bitmap_BP)
        batches = (
            _batch(values, number_B, _before(number_B), rows_R, self._is_flat) for rows_R in self._groups(number_B)
        )
        return max(map(self._inner.max_error, batches), default=0.0)

    def size_bounds(self, spec: TensorSpec, num_rows: int = 1) -> tuple[int, int]:
        num_values = math.prod(spec.shape)
        bitmap_bytes = kernel.row_bytes(num_values)
        return num_rows * bitmap_bytes, num_rows * (bitmap_bytes + self._inner_bytes(num_values))

    def _inner_bytes(self, num_chosen: int) -> int:
        return inner_bytes(self._inner, num_chosen)

    def _sizes(self, number_B: Array) -> Array:
        """What the wrapped codec writes for rows of so many values."""
        if self._law is not None:
            return np.where(number_B > 0, self._law.head_bytes + (number_B * self._law.bits + 7) // 8, 0)
        unique_N, at_B = np.unique(number_B, return_inverse=True)
        return np.array([self._inner_bytes(number) for number in unique_N.tolist()], np.int64)[at_B.reshape(-1)]

    def _groups(self, number_B: Array) -> list[Array]:
        """Rows that one inner call takes: equally long ones, or all of them where values are coded one by one."""
        if self._is_flat:
            return [np.arange(len(number_B))] if number_B.any() else []
        order_B = np.argsort(number_B, kind="stable")
        ends = np.flatnonzero(np.diff(number_B[order_B])) + 1
        return [rows_R for rows_R in np.split(order_B, ends) if rows_R.size and number_B[rows_R[0]]]


def _batch(values: Array, number_B: Array, firsts_B: Array, rows_R: Array, is_flat: bool) -> Array:
    """Values of a group's rows, close together."""
    if is_flat:
        return values.reshape(1, -1)
    batch_Rn = np.empty((len(rows_R), int(number_B[rows_R[0]])), np.float32)
    length_R = 4 * number_B[rows_R]
    _place(_bytes(values), _bytes(batch_Rn), 4 * firsts_B[rows_R], _before(length_R), length_R)
    return batch_Rn


def _place(source: Array, to: Array, from_R: Array, to_R: Array, length_R: Array) -> None:
    """`kernel.place`; a lone run, as a large row is, has no need of a table."""
    if len(length_R) > 1:
        kernel.place(source, to, from_R, to_R, length_R)
        return
    at, there, length = int(from_R[0]), int(to_R[0]), int(length_R[0])
    to[there : there + length] = source[at : at + length]


def _before(number_B: Array) -> Array:
    """Sum of all numbers before each."""
    before_B: Array = np.cumsum(number_B) - number_B
    return before_B


def _bytes(x: Array) -> Array:
    return x.reshape(-1).view(np.uint8)
