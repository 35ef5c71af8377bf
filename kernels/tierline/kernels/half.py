"""`float16` and `bfloat16`, compiled: two bytes for every float32."""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

from tierline.kernels.library import Counts, binder, counts, pointer, readable
from tierline.kernels.numpy.float16 import Floats, row_bytes


class Oracle(Protocol):
    """A module of `kernels.numpy`."""

    def encode(self, x_BV: Floats) -> bytes: ...

    def decode(self, data: bytes, x_BV: Floats) -> None: ...


class Half:
    """The functions of one format, with the bytes of its oracle."""

    def __init__(self, name: str, oracle: Oracle) -> None:
        self._oracle, self._encode, self._decode = oracle, f"tl_{name}_encode", f"tl_{name}_decode"
        self._compiled = binder(**{self._encode: "!ppn", self._decode: "!ppn"})

    def encode(self, x_BV: Floats) -> bytes:
        """See the oracle."""
        lib, size = self._compiled(), _counts(x_BV.size)
        if lib is None or size is None:
            return self._oracle.encode(x_BV)
        x_BV, data = readable(x_BV), size.fresh(size.num_bytes)
        getattr(lib, self._encode)(pointer(x_BV), data, size.num_values)
        return data

    def decode(self, data: bytes, x_BV: Floats) -> None:
        """See the oracle; `x_BV` must be contiguous."""
        lib, size = self._compiled(), _counts(x_BV.size)
        if lib is None or size is None:
            self._oracle.decode(data, x_BV)
            return
        getattr(lib, self._decode)(data, pointer(x_BV), size.num_values)


@lru_cache(maxsize=256)
def _counts(num_values: int) -> Counts | None:
    return counts((1, num_values), row_bytes)
