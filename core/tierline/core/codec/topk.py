"""The k values of largest magnitude of each row; the others decode as zeros. Of equal magnitudes the first is kept.

`share` says how many (k = ceil(share * V)), or `count` does where it is not 0 (k = min(count, V)). Used alone on
updates it is the sparsification of A. F. Aji and K. Heafield, Sparse Communication for Distributed Gradient Descent
(2017), section 3, without its memory of what was dropped, which a Compressor keeps.

Bytes of one row, rows one after the other: positions, then the k values in the order of their positions as one row of
the wrapped codec (`raw` unless named). Positions p_0 < ... < p_(k-1) are written with l low bits each, l the number
that makes them smallest: k * l bits, p_i's low bits from bit i * l, least significant first, filled up to a byte;
then k + ((V - 1) >> l) bits, those at (p_i >> l) + i set, least significant first, filled up to a byte. Where ceil(V
/ 8) bytes are not more they are a bitmap as in `sparse_bitmap`. Padding bits are 0. NaN and infinities count as
largest: the wrapped codec keeps or refuses them, and more than k of them raise CodecError.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from tierline.core.codec._check import (
    check_head,
    check_length,
    exact_inner,
    float_rows,
    inner_bytes,
    result,
    wrapped_token,
)
from tierline.core.coding import canonical
from tierline.core.errors import CodecError, ConfigError, CorruptPayload
from tierline.core.protocols import Codec
from tierline.core.types import Array, Payload, TensorSpec
from tierline.kernels import sparse_bitmap
from tierline.kernels import topk as kernel


class Topk:
    """Codec `topk`."""

    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    role: ClassVar[str] = "select"

    def __init__(self, inner: Codec, *, share: float = 0.05, count: int = 0) -> None:
        if not 0 < share <= 1:
            raise ConfigError(f"share is {share}, above 0 and at most 1")
        if count < 0:
            raise ConfigError(f"count is {count}, at least 1 (or 0: share decides)")
        self._share, self._count = share, count
        self._inner = exact_inner(inner, "topk")
        stage = canonical("topk", {"share": share, "count": count}, {"share": 0.05, "count": 0})
        self.token = wrapped_token(stage, inner)

    def encode(self, x_B: Array, *, seed: int = 0) -> Payload:
        rows_BV = float_rows(x_B, self.token)
        if rows_BV.size == 0:
            return Payload(self.token, "float32", x_B.shape, b"")
        num_chosen = self._num_chosen(rows_BV.shape[1])
        bitmap_BP = self._choose(rows_BV, num_chosen)
        coded = self._inner.encode(sparse_bitmap.gather(rows_BV, bitmap_BP).reshape(-1, num_chosen), seed=seed)
        values_BQ = np.frombuffer(coded.data, np.uint8).reshape(len(rows_BV), -1)
        positions_BQ = kernel.pack_positions(bitmap_BP, rows_BV.shape[1], num_chosen)
        data = np.concatenate([positions_BQ, values_BQ], axis=1).tobytes()
        return Payload(self.token, "float32", x_B.shape, data, coded.params)

    def decode(self, payload: Payload, limit: TensorSpec, *, max_rows: int = 4096, out: Array | None = None) -> Array:
        num_rows = check_head(payload, self.token, self.dtypes, limit, max_rows)
        num_values = math.prod(limit.shape)
        check_length(payload, self.size_bounds(limit, num_rows)[0])
        if num_rows * num_values == 0:
            return result(out, num_rows, limit)
        num_chosen = self._num_chosen(num_values)
        coded_BQ = np.frombuffer(payload.data, np.uint8).reshape(num_rows, -1)
        num_position_bytes = kernel.positions_bytes(num_values, num_chosen)
        try:
            bitmap_BP = kernel.unpack_positions(coded_BQ[:, :num_position_bytes], num_values, num_chosen)
        except ValueError as error:
            raise CorruptPayload(f"{self.token}: {error}") from None
        x_B = result(out, num_rows, limit)
        data = coded_BQ[:, num_position_bytes:].tobytes()
        row = Payload(self._inner.token, "float32", (num_rows, num_chosen), data, payload.params)
        values_Bk = self._inner.decode(row, TensorSpec("float32", (num_chosen,)), max_rows=max_rows)
        sparse_bitmap.scatter(values_Bk.reshape(-1), bitmap_BP, x_B.reshape(num_rows, num_values))
        return x_B

    def max_error(self, x_B: Array) -> float:
        """Exact for what is dropped, the wrapped codec's bound for what is kept."""
        rows_BV = float_rows(x_B, self.token)
        if rows_BV.size == 0:
            return 0.0
        num_chosen = self._num_chosen(rows_BV.shape[1])
        bitmap_BP = self._choose(rows_BV, num_chosen)
        kept = self._inner.max_error(sparse_bitmap.gather(rows_BV, bitmap_BP).reshape(-1, num_chosen))
        is_kept_BV = np.unpackbits(bitmap_BP, axis=1, count=rows_BV.shape[1]).view(np.bool_)
        return max(kept, float(np.max(np.abs(rows_BV), initial=0.0, where=~is_kept_BV)))

    def size_bounds(self, spec: TensorSpec, num_rows: int = 1) -> tuple[int, int]:
        num_values = math.prod(spec.shape)
        if num_values == 0:
            return 0, 0
        num_chosen = self._num_chosen(num_values)
        row_bytes = kernel.positions_bytes(num_values, num_chosen) + inner_bytes(self._inner, num_chosen)
        return num_rows * row_bytes, num_rows * row_bytes

    def _num_chosen(self, num_values: int) -> int:
        return min(self._count or math.ceil(self._share * num_values), num_values)

    def _choose(self, rows_BV: Array, num_chosen: int) -> Array:
        try:
            return kernel.choose(rows_BV, num_chosen)
        except ValueError as error:
            raise CodecError(f"{self.token}: {error}") from None
