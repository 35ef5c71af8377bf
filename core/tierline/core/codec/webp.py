"""Images as WebP (RFC 9649): the input itself as payload, smaller than JPEG at equal quality and slower to write.

Takes uint8 [B, C, H, W] with 1 (grey) or 3 (red, green, blue) channels and nothing else, as `jpeg` does. `quality` from
0 to 100 scales the quantiser; with `lossless=1` every pixel is kept, and quality says how hard the encoder tries.

Bytes of one row, rows one after the other: uint32 number of bytes, then so many bytes of one WebP file with a single
chunk, `VP8 ` or (lossless) `VP8L`: no metadata, alpha or animation. Grey images are coded with three equal channels.
Decoders of lossy files may differ by a few levels: these bytes are not golden.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from tierline.core.codec import _image
from tierline.core.coding import canonical
from tierline.core.errors import ConfigError
from tierline.core.types import Array, Payload, TensorSpec

_KEY_FRAME = b"\x9d\x01\x2a"
_LOSSLESS = 0x2F


class Webp:
    """Codec `webp`."""

    dtypes: ClassVar[tuple[str, ...]] = _image.DTYPES
    role: ClassVar[str] = "values"

    def __init__(self, *, quality: int = 75, lossless: int = 0) -> None:
        if not 0 <= quality <= 100:
            raise ConfigError(f"quality is {quality}, from 0 to 100")
        if lossless not in (0, 1):
            raise ConfigError(f"lossless is {lossless}, 0 or 1")
        self._quality, self._lossless = quality, bool(lossless)
        options = {"quality": quality, "lossless": lossless}
        self.token = canonical("webp", options, {"quality": 75, "lossless": 0})

    def encode(self, x_B: Array, *, seed: int = 0) -> Payload:
        return _image.encode_files(x_B, self.token, "WEBP", quality=self._quality, lossless=self._lossless)

    def decode(self, payload: Payload, limit: TensorSpec, *, max_rows: int = 4096, out: Array | None = None) -> Array:
        head = _lossless_head if self._lossless else _lossy_head
        return _image.decode_files(payload, self.token, "WEBP", head, limit, max_rows, out)

    def max_error(self, x_B: Array) -> float:
        """0, or the whole range: a quantised transform bounds the mean error, not that of a pixel."""
        return 0.0 if self._lossless or not np.size(x_B) else 255.0

    def size_bounds(self, spec: TensorSpec, num_rows: int = 1) -> tuple[int, int]:
        return _image.size_bounds(spec, num_rows, self.token)


def _chunk(file: bytes, name: bytes) -> bytes:
    """What the file's only chunk holds. Raises ValueError for a file of another layout."""
    if file[:4] != b"RIFF" or file[8:12] != b"WEBP" or int.from_bytes(file[4:8], "little") != len(file) - 8:
        raise ValueError("no RIFF header of a WebP file of this length")
    if file[12:16] != name:
        raise ValueError(f"chunk {file[12:16]!r} where {name!r} was agreed")
    num_bytes = int.from_bytes(file[16:20], "little")
    if 20 + num_bytes + num_bytes % 2 != len(file):
        raise ValueError(f"a chunk of {num_bytes} bytes in a file of {len(file)}")
    return file[20 : 20 + num_bytes]


def _lossy_head(file: bytes) -> _image.Head:
    data = _chunk(file, b"VP8 ")
    if data[3:6] != _KEY_FRAME:
        raise ValueError("no key frame")
    # Two bits beside each side ask the shower to scale.
    width, height = (int.from_bytes(data[at : at + 2], "little") for at in (6, 8))
    return 0, height, width


def _lossless_head(file: bytes) -> _image.Head:
    data = _chunk(file, b"VP8L")
    if data[0] != _LOSSLESS:
        raise ValueError("no lossless signature")
    word = int.from_bytes(data[1:5], "little")
    return 0, (word >> 14 & 0x3FFF) + 1, (word & 0x3FFF) + 1
