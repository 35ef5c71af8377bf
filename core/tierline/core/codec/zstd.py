"""Zstandard (RFC 8878) over all bytes made so far, those of a whole batch at once: lossless.

`level` is the compressor's, from -7 to 19: higher is smaller and slower to write, never slower to read by much.

Bytes: one Zstandard frame that states its content size and uses no dictionary; its content is what the wrapped codec
wrote. Batches are therefore not rows one after the other. Needs the package `zstandard` (the extra `codec`).
"""

from __future__ import annotations

import threading
from typing import ClassVar

import zstandard

from tierline.core.codec._check import check_between, check_head
from tierline.core.coding import canonical
from tierline.core.errors import ConfigError, CorruptPayload
from tierline.core.protocols import Codec
from tierline.core.types import Array, Payload, TensorSpec

_LEAST_BYTES = 9
"""Of a frame: magic, descriptor, content size, and an empty block."""
_MAX_WINDOW = 1 << 23
"""Largest window taken, in bytes: what RFC 8878 asks decoders to support; levels up to 19 need no more."""


class Zstd:
    """Codec `zstd`."""

    role: ClassVar[str] = "bytes"

    def __init__(self, inner: Codec, *, level: int = 3) -> None:
        if not -7 <= level <= 19:
            raise ConfigError(f"level is {level}, from -7 to 19")
        self._inner, self._level = inner, level
        self.dtypes = inner.dtypes
        self.token = f"{inner.token}+{canonical('zstd', {'level': level}, {'level': 3})}"
        self._local = threading.local()  # contexts may serve one thread at a time, and cost more than a small payload

    def encode(self, x_B: Array, *, seed: int = 0) -> Payload:
        coded = self._inner.encode(x_B, seed=seed)
        data = self._compressor().compress(coded.data)
        return Payload(self.token, coded.dtype, coded.shape, data, coded.params)

    def decode(self, payload: Payload, limit: TensorSpec, *, max_rows: int = 4096, out: Array | None = None) -> Array:
        num_rows = check_head(payload, self.token, self.dtypes, limit, max_rows)
        check_between(payload, *self.size_bounds(limit, num_rows))
        content = self._decompress(payload.data, *self._inner.size_bounds(limit, num_rows))
        coded = Payload(self._inner.token, payload.dtype, payload.shape, content, payload.params)
        return self._inner.decode(coded, limit, max_rows=max_rows, out=out)

    def max_error(self, x_B: Array) -> float:
        """That of the wrapped codec."""
        return self._inner.max_error(x_B)

    def size_bounds(self, spec: TensorSpec, num_rows: int = 1) -> tuple[int, int]:
        """At most ZSTD_COMPRESSBOUND of what the wrapped codec writes."""
        largest = self._inner.size_bounds(spec, num_rows)[1]
        return _LEAST_BYTES, largest + (largest >> 8) + (max((128 << 10) - largest, 0) >> 11)

    def _decompress(self, data: bytes, smallest: int, largest: int) -> bytes:
        """Content of the one frame in `data`, whose size is checked before room is made for it."""
        try:
            frame = zstandard.get_frame_parameters(data)
            if frame.content_size == zstandard.CONTENTSIZE_UNKNOWN or frame.dict_id:
                raise CorruptPayload(f"{self.token}: a frame without content size, or with a dictionary")
            if not smallest <= frame.content_size <= largest:
                raise CorruptPayload(
                    f"{self.token}: {frame.content_size} bytes of content, its shape allows {smallest} to {largest}"
                )
            content = self._decompressor().decompress(data, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise CorruptPayload(f"{self.token}: {error}") from None
        if len(content) != frame.content_size:
            raise CorruptPayload(f"{self.token}: {len(content)} bytes of content, {frame.content_size} are stated")
        return content

    def _compressor(self) -> zstandard.ZstdCompressor:
        if not hasattr(self._local, "compressor"):
            self._local.compressor = zstandard.ZstdCompressor(level=self._level)
        made: zstandard.ZstdCompressor = self._local.compressor
        return made

    def _decompressor(self) -> zstandard.ZstdDecompressor:
        if not hasattr(self._local, "decompressor"):
            self._local.decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
        made: zstandard.ZstdDecompressor = self._local.decompressor
        return made
