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

    def encode(self, x_B: Array, *, seed: int = 0) -> Payload:
        rows_BV = float_rows(x_B, self.token)
        bitmap_BP = kernel.mark(rows_BV)
        parts: list[bytes] = []
        params: dict[str, float] = {}
        for bitmap_P, values_1n in zip(bitmap_BP, self._split(rows_BV, bitmap_BP), strict=True):
            parts.append(bitmap_P.tobytes())
            if values_1n.size:
                coded = self._inner.encode(values_1n, seed=seed)
                parts.append(coded.data)
                params.update(coded.params)  # of the seed and the options alone: equal for all rows
        return Payload(self.token, "float32", x_B.shape, b"".join(parts), params)

    def decode(self, payload: Payload, limit: TensorSpec, *, max_rows: int = 4096, out: Array | None = None) -> Array:
        num_rows = check_head(payload, self.token, self.dtypes, limit, max_rows)
        num_values = math.prod(limit.shape)
        check_between(payload, *self.size_bounds(limit, num_rows))
        if num_rows * num_values == 0:
            return result(out, num_rows, limit)
        places = self._places(payload, num_rows, num_values)
        bitmap_BP = np.stack([bitmap_P for bitmap_P, _, _ in places])
        if not kernel.padding_is_clear(bitmap_BP, num_values):
            raise CorruptPayload(f"{self.token}: padding bits are set")
        x_B = result(out, num_rows, limit)
        values = np.empty(sum(num_chosen for _, num_chosen, _ in places), np.float32)
        done = 0
        for _, num_chosen, start in places:
            if num_chosen:
                end = start + inner_bytes(self._inner, num_chosen)
                row = Payload(self._inner.token, "float32", (1, num_chosen), payload.data[start:end], payload.params)
                place_1n = values[done : done + num_chosen].reshape(1, num_chosen)
                self._inner.decode(row, TensorSpec("float32", (num_chosen,)), out=place_1n)
                done += num_chosen
        kernel.scatter(values, bitmap_BP, x_B.reshape(num_rows, num_values))
        return x_B

    def max_error(self, x_B: Array) -> float:
        """That of the wrapped codec on the values that are not zero."""
        rows_BV = float_rows(x_B, self.token)
        parts = self._split(rows_BV, kernel.mark(rows_BV))
        return max((self._inner.max_error(values_1n) for values_1n in parts if values_1n.size), default=0.0)

    def size_bounds(self, spec: TensorSpec, num_rows: int = 1) -> tuple[int, int]:
        num_values = math.prod(spec.shape)
        bitmap_bytes = kernel.row_bytes(num_values)
        return num_rows * bitmap_bytes, num_rows * (bitmap_bytes + inner_bytes(self._inner, num_values))

    def _split(self, rows_BV: Array, bitmap_BP: Array) -> list[Array]:
        """Values that are not zero, as a batch of one for each row."""
        ends_B = np.cumsum(kernel.count(bitmap_BP))
        return [part.reshape(1, -1) for part in np.split(kernel.gather(rows_BV, bitmap_BP), ends_B[:-1])][: len(ends_B)]

    def _places(self, payload: Payload, num_rows: int, num_values: int) -> list[tuple[Array, int, int]]:
        """Of each row its bitmap, how many values it has and where they start. Raises CorruptPayload."""
        places, at, num_bytes = [], 0, kernel.row_bytes(num_values)
        for _ in range(num_rows):
            start = at + num_bytes
            if start > len(payload.data):
                break
            bitmap_P = np.frombuffer(payload.data, np.uint8, num_bytes, at)
            num_chosen = int(kernel.count(bitmap_P[None])[0])
            places.append((bitmap_P, num_chosen, start))
            at = start + inner_bytes(self._inner, num_chosen)
        if len(places) < num_rows or at != len(payload.data):
            raise CorruptPayload(
                f"{self.token}: {len(payload.data)} bytes of data are not what the bitmaps of {num_rows} rows need"
            )
        return places
