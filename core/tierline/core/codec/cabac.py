"""Context-adaptive binary arithmetic coding of a quantiser's codes: lossless, each code predicted from its neighbours.

Neighbouring values of a feature map are alike, and zeros come in patches: `zstd` sees neither, nor bits that cross
bytes. The model is that of `tierline.kernels.numpy.cabac`, which cites where it comes from; the codes of a row are
taken as planes [..., H, W]: a rank of 1 has one line, ranks above 3 have all axes before the last two as planes.
Wraps codecs whose rows are a head and V codes of equal width: `affine`, `bitplane`.

Bytes: 0 and what the wrapped codec wrote; or, where that is smaller, 1, the heads of all rows, and one stream of all
codes of the batch. Batches are therefore not rows one after the other.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from tierline.core.codec._check import CodeRows, check_between, check_head
from tierline.core.errors import ConfigError, CorruptPayload
from tierline.core.protocols import Codec
from tierline.core.types import Array, Payload, TensorSpec
from tierline.kernels import cabac as kernel

_STORED, _CODED = b"\0", b"\1"


def _least_stream(num_values: int) -> int:
    """Bytes of the shortest stream: no decision costs less than log2(65536 / 65504) bits, and four bytes end it."""
    return max(4, num_values >> 14)


class Cabac:
    """Codec `cabac`."""

    role: ClassVar[str] = "bytes"

    def __init__(self, inner: Codec) -> None:
        rows: CodeRows | None = getattr(inner, "code_rows", None)
        if rows is None:
            raise ConfigError(
                f"cabac cannot wrap {inner.token!r}, which has no codes of one width; wrap affine or bitplane"
            )
        self._inner, self._rows = inner, rows
        self.dtypes = inner.dtypes
        self.token = f"{inner.token}+cabac"

    def encode(self, x_B: Array, *, seed: int = 0) -> Payload:
        coded = self._inner.encode(x_B, seed=seed)
        packed = None if x_B.size == 0 else self._pack(coded.data, x_B.shape)
        data = _STORED + coded.data if packed is None else _CODED + packed
        return Payload(self.token, coded.dtype, coded.shape, data, coded.params)

    def decode(self, payload: Payload, limit: TensorSpec, *, max_rows: int = 4096, out: Array | None = None) -> Array:
        num_rows = check_head(payload, self.token, self.dtypes, limit, max_rows)
        check_between(payload, *self.size_bounds(limit, num_rows))
        kind, data = payload.data[:1], payload.data[1:]
        if kind == _CODED and num_rows * math.prod(limit.shape):
            data = self._unpack(data, (num_rows, *limit.shape))
        elif kind != _STORED:
            raise CorruptPayload(f"{self.token}: kind {kind!r} of data, neither stored nor coded")
        coded = Payload(self._inner.token, payload.dtype, payload.shape, data, payload.params)
        return self._inner.decode(coded, limit, max_rows=max_rows, out=out)

    def max_error(self, x_B: Array) -> float:
        """That of the wrapped codec."""
        return self._inner.max_error(x_B)

    def size_bounds(self, spec: TensorSpec, num_rows: int = 1) -> tuple[int, int]:
        stored = self._inner.size_bounds(spec, num_rows)[1]
        coded = num_rows * self._rows.head_bytes + _least_stream(num_rows * math.prod(spec.shape))
        return 1 + min(stored, coded), 1 + stored

    def _shape(self, shape: tuple[int, ...]) -> kernel.Shape:
        bits, high_first = self._rows.bits, self._rows.high_first
        height, width = (1, 1, *shape[1:])[-2:]
        row_bytes = (math.prod(shape[1:]) * bits + 7) // 8
        return kernel.Shape(row_bytes, shape[0], math.prod(shape[1:-2]), height, width, bits, int(high_first))

    def _pack(self, data: bytes, shape: tuple[int, ...]) -> bytes | None:
        """Heads and stream, or None where they are not smaller."""
        rows_BP = np.frombuffer(data, np.uint8).reshape(shape[0], -1)
        heads, codes_BP = rows_BP[:, : self._rows.head_bytes], rows_BP[:, self._rows.head_bytes :]
        stream = kernel.encode(codes_BP.tobytes(), self._shape(shape), codes_BP.size - 1)
        return None if stream is None else heads.tobytes() + stream

    def _unpack(self, data: bytes, shape: tuple[int, ...]) -> bytes:
        """What the wrapped codec wrote. Raises CorruptPayload for a stream of another length than its codes need."""
        num_rows, head_bytes = shape[0], self._rows.head_bytes
        layout = self._shape(shape)
        least_bytes = _least_stream(math.prod(shape))
        if not least_bytes <= len(data) - num_rows * head_bytes < num_rows * layout.row_bytes:
            raise CorruptPayload(f"{self.token}: {len(data)} bytes of heads and stream")
        rows_BP = np.zeros((num_rows, head_bytes + layout.row_bytes), np.uint8)
        rows_BP[:, :head_bytes] = np.frombuffer(data, np.uint8, num_rows * head_bytes).reshape(num_rows, head_bytes)
        codes_BP = np.zeros((num_rows, layout.row_bytes), np.uint8)
        try:
            kernel.decode(data[num_rows * head_bytes :], codes_BP, layout)
        except ValueError as error:
            raise CorruptPayload(f"{self.token}: {error}") from None
        rows_BP[:, head_bytes:] = codes_BP
        return rows_BP.tobytes()
