"""What every codec checks before it touches values: dtype on the way out, everything about a Payload on the way in."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np

from tierline.core.errors import ConfigError, CorruptPayload, ShapeMismatch
from tierline.core.protocols import Codec
from tierline.core.types import Array, Payload, TensorSpec

FLOAT32 = np.dtype(np.float32)
_dtype = cache(np.dtype)
"""Looking a name up costs what coding a small map does."""


def check_floats(x_B: Array, codec: str) -> None:
    """Raise ShapeMismatch for another dtype than float32 or a scalar."""
    if x_B.dtype != FLOAT32 or x_B.ndim == 0:
        raise ShapeMismatch(f"{codec}: takes a batch of float32, got {x_B.dtype}{list(x_B.shape)}; cast it or use raw")


class CodeRows(NamedTuple):
    """Layout of a codec whose rows are a head and then V codes of equal width: its attribute `code_rows`."""

    head_bytes: int
    bits: int
    high_first: bool = False
    """Code 0 is in the most significant bits of its byte; otherwise codes are one little-endian stream of bits."""


class RowSize(NamedTuple):
    """How many bytes a row of n > 0 float32 values takes: head_bytes + ceil(n * bits / 8). A codec's attribute
    `row_size`, where it has so simple a law."""

    head_bytes: int
    bits: int

    @property
    def is_flat(self) -> bool:
        """Each value is coded by itself in whole bytes: rows behind one another are coded as one row would be."""
        return self.head_bytes == 0 and self.bits % 8 == 0


def float_rows(x_B: Array, codec: str) -> Array:
    """A float32 batch as (B, V). Raises ShapeMismatch for another dtype or a scalar."""
    check_floats(x_B, codec)
    return x_B.reshape(x_B.shape[0], math.prod(x_B.shape[1:]))


def rows(x_B: Array, codec: str, dtypes: tuple[str, ...]) -> Array:
    """A batch of one of these dtypes, in native byte order, as (B, V). Raises ShapeMismatch for others or a scalar."""
    if x_B.ndim == 0 or not any(x_B.dtype == _dtype(name) for name in dtypes):
        names = ", ".join(dtypes)
        raise ShapeMismatch(f"{codec}: takes a batch of {names}, got {x_B.dtype}{list(x_B.shape)}; cast it or use raw")
    return x_B.reshape(x_B.shape[0], math.prod(x_B.shape[1:]))


def check_head(payload: Payload, codec: str, dtypes: tuple[str, ...], limit: TensorSpec, max_rows: int) -> int:
    """Number of rows, once token, dtype and shape are what `limit` allows. Raises CorruptPayload."""
    if payload.codec != codec:
        raise CorruptPayload(f"{codec}: the payload is coded with {payload.codec!r}")
    if not isinstance(payload.data, bytes):  # kernels read where its bytes lie
        raise CorruptPayload(f"{codec}: data is a {type(payload.data).__name__}; copy it into bytes")
    if payload.dtype != limit.dtype or payload.dtype not in dtypes:
        raise CorruptPayload(f"{codec}: dtype {payload.dtype!r} where {limit.dtype} was agreed")
    shape = payload.shape
    if tuple(shape[1:]) != limit.shape or not shape or not isinstance(shape[0], int) or shape[0] < 0:
        raise CorruptPayload(f"{codec}: shape {list(shape)} is no batch of {list(limit.shape)}")
    if shape[0] > max_rows:
        raise CorruptPayload(f"{codec}: {shape[0]} rows, at most {max_rows} are taken")
    return shape[0]


def check_length(payload: Payload, expected: int) -> None:
    """Raise CorruptPayload unless the data has exactly `expected` bytes."""
    if len(payload.data) != expected:
        raise CorruptPayload(f"{payload.codec}: {len(payload.data)} bytes of data, its shape needs {expected}")


def result(out: Array | None, num_rows: int, limit: TensorSpec) -> Array:
    """The array to decode into: `out`, or a new one. Raises ShapeMismatch for an `out` that does not fit exactly."""
    shape = (num_rows, *limit.shape)
    if out is None:
        return np.empty(shape, _dtype(limit.dtype))
    if out.shape != shape or out.dtype != _dtype(limit.dtype) or not out.flags.carray:
        raise ShapeMismatch(
            f"out: expected a writable, aligned and contiguous {limit.dtype}{list(shape)}, "
            f"got {out.dtype}{list(out.shape)}"
        )
    return out


def check_between(payload: Payload, smallest: int, largest: int) -> None:
    """Raise CorruptPayload unless the data has a length that an encoder can have written."""
    if not smallest <= len(payload.data) <= largest:
        raise CorruptPayload(
            f"{payload.codec}: {len(payload.data)} bytes of data, its shape allows {smallest} to {largest}"
        )


def exact_inner(inner: Codec, name: str) -> Codec:
    """`inner`, if it codes float32 rows in a size that follows from their length. Raises ConfigError otherwise."""
    for num_values in (1, 9, 64):
        if "float32" in inner.dtypes:
            smallest, largest = inner.size_bounds(TensorSpec("float32", (num_values,)))
            if smallest == largest:
                continue
        raise ConfigError(
            f"{name} cannot wrap {inner.token!r}, whose size does not follow from the number of float32 values; "
            "wrap raw, float16 or affine, and put codecs that pack bytes last"
        )
    return inner


def inner_bytes(inner: Codec, num_values: int) -> int:
    """What `inner` writes for one row of so many values: nothing for none."""
    return inner.size_bounds(TensorSpec("float32", (num_values,)))[0] if num_values else 0


def wrapped_token(stage: str, inner: Codec) -> str:
    """Token of a select stage before what it wraps; `raw` goes without saying."""
    return stage if inner.token == "raw" else f"{stage}+{inner.token}"
