"""Values as they are in memory, little-endian, row-major: the lossless codec for every dtype on the wire.

Bytes: B * V values of the dtype's width, row after row. `bool` is one byte per value, 0 or 1.
NaN and infinities keep their bits.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from tierline.core.codec._check import RowSize, check_head, check_length, result
from tierline.core.errors import CorruptPayload, ShapeMismatch
from tierline.core.types import Array, Payload, TensorSpec

_NAMES = ("float32", "float16", "int8", "uint8", "int32", "int64", "bool")
_BY_DTYPE = {np.dtype(name): name for name in _NAMES}
_ON_WIRE = {name: np.dtype(name).newbyteorder("<") for name in _NAMES}


def as_on_wire(x_B: Array) -> tuple[str, Array]:
    """Name of the dtype, and the values as bytes have them; not copied where memory has them so. Raises ShapeMismatch
    for what `raw` does not carry."""
    name = _BY_DTYPE.get(x_B.dtype)
    if name is None or x_B.ndim == 0:
        raise ShapeMismatch(
            f"raw: takes a batch of {', '.join(_NAMES)} in native byte order, got {x_B.dtype}{list(x_B.shape)}"
        )
    return name, x_B.astype(_ON_WIRE[name], copy=False)


def in_place(data: memoryview, dtype: str, shape: tuple[int, ...]) -> Array | None:
    """What `decode` makes, as a view on `data` where memory can have values there; None where it must be copied or
    refused."""
    if dtype == "bool" or dtype not in _ON_WIRE or _ON_WIRE[dtype].itemsize * math.prod(shape) != len(data):
        return None
    array = np.frombuffer(data, _ON_WIRE[dtype]).reshape(shape)
    return array if array.flags.aligned and array.dtype.isnative else None


class Raw:
    """Codec `raw`."""

    dtypes: ClassVar[tuple[str, ...]] = _NAMES
    role: ClassVar[str] = "values"
    token: ClassVar[str] = "raw"
    row_size: ClassVar[RowSize] = RowSize(0, 32)

    def encode(self, x_B: Array, *, seed: int = 0) -> Payload:
        name, on_wire_B = as_on_wire(x_B)
        return Payload("raw", name, x_B.shape, on_wire_B.tobytes())

    def decode(self, payload: Payload, limit: TensorSpec, *, max_rows: int = 4096, out: Array | None = None) -> Array:
        num_rows = check_head(payload, "raw", _NAMES, limit, max_rows)
        on_wire = _ON_WIRE[limit.dtype]
        check_length(payload, num_rows * math.prod(limit.shape) * on_wire.itemsize)
        if limit.dtype == "bool" and payload.data.translate(None, b"\0\1"):
            raise CorruptPayload("raw: a bool is neither 0 nor 1")
        x_B = result(out, num_rows, limit)  # a copy: writable, aligned, and free of the message it came in
        x_B[...] = np.frombuffer(payload.data, on_wire).reshape(x_B.shape)
        return x_B

    def max_error(self, x_B: Array) -> float:
        return 0.0

    def size_bounds(self, spec: TensorSpec, num_rows: int = 1) -> tuple[int, int]:
        num_bytes = spec.nbytes(num_rows)
        return num_bytes, num_bytes
