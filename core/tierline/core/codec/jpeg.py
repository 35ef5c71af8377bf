"""Images as baseline JPEG (ITU-T T.81): the input itself as payload, which a feature's codec has to beat.

Takes uint8 [B, C, H, W] with 1 (grey) or 3 (red, green, blue) channels and nothing else: floats are refused, since
only their maker knows what range they have. `quality` from 1 to 95 scales the quantiser; colours are halved in both
axes (4:2:0), or not at 91 and more (4:4:4).

Bytes of one row, rows one after the other: uint32 number of bytes, then so many bytes of one JPEG file. Readers take
the markers SOI APP0 DQT SOF0 DHT DRI SOS EOI only: no metadata, no further scans, nothing after EOI. Decoders may
differ by a few levels, as the standard allows, and so do library versions: these bytes are not golden.
"""

from __future__ import annotations

import struct
from typing import ClassVar

from tierline.core.codec import _image
from tierline.core.coding import canonical
from tierline.core.errors import ConfigError
from tierline.core.types import Array, Payload, TensorSpec

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_SOF0, _SOS = 0xC0, 0xDA
_OTHER_MARKERS = (0xC4, 0xDB, 0xDD, 0xE0)
"""DHT, DQT, DRI, APP0."""
_RESTARTS = range(0xD0, 0xD8)


class Jpeg:
    """Codec `jpeg`."""

    dtypes: ClassVar[tuple[str, ...]] = _image.DTYPES
    role: ClassVar[str] = "values"

    def __init__(self, *, quality: int = 75) -> None:
        if not 1 <= quality <= 95:
            raise ConfigError(f"quality is {quality}, from 1 to 95")
        self._quality = quality
        self.token = canonical("jpeg", {"quality": quality}, {"quality": 75})

    def encode(self, x_B: Array, *, seed: int = 0) -> Payload:
        subsampling = "4:4:4" if self._quality > 90 else "4:2:0"
        return _image.encode_files(x_B, self.token, "JPEG", quality=self._quality, subsampling=subsampling)

    def decode(self, payload: Payload, limit: TensorSpec, *, max_rows: int = 4096, out: Array | None = None) -> Array:
        return _image.decode_files(payload, self.token, "JPEG", _head, limit, max_rows, out)

    def max_error(self, x_B: Array) -> float:
        """The whole range: a quantised cosine transform bounds the mean error, not that of a pixel."""
        return 255.0

    def size_bounds(self, spec: TensorSpec, num_rows: int = 1) -> tuple[int, int]:
        return _image.size_bounds(spec, num_rows, self.token)


def _head(file: bytes) -> _image.Head:
    """Channels, height, width of a file of the layout above. Raises ValueError or struct.error for any other."""
    if not (file.startswith(_SOI) and file.endswith(_EOI)):
        raise ValueError("it does not begin with SOI and end with EOI")
    head: _image.Head | None = None
    at = 2
    while True:
        if file[at] != 0xFF:
            raise ValueError(f"no marker at byte {at}")
        marker, length = file[at + 1], int.from_bytes(file[at + 2 : at + 4], "big")
        if length < 2 or at + 2 + length > len(file):
            raise ValueError(f"a segment of {length} bytes at byte {at}")
        if marker == _SOS:
            break
        if marker == _SOF0 and head is None:
            height, width, num_channels = struct.unpack_from(">HHB", file, at + 5)
            head = num_channels, height, width
        elif marker not in _OTHER_MARKERS:
            raise ValueError(f"marker {marker:#x} at byte {at}")
        at += 2 + length
    if head is None:
        raise ValueError("no size before the scan")
    _check_scan(file[at + 2 + length : -2])
    return head


def _check_scan(scan: bytes) -> None:
    """Raise ValueError for a marker inside the one scan: a second scan or file would hide there."""
    at = scan.find(b"\xff")
    while at >= 0:
        following = scan[at + 1 : at + 2]
        if following != b"\0" and (not following or following[0] not in _RESTARTS):
            raise ValueError("a marker inside the scan")
        at = scan.find(b"\xff", at + 2)
