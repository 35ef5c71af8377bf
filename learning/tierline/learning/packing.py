"""A `Compressed` as one array of bytes, as messages of rules carry it: `{"w": packed(message)}`.

Layout, little-endian: uint32 stamp, uint8 number of payloads, uint8 number of scalars; per payload its name, codec
token and dtype (each uint8 length, UTF-8), uint8 number of axes, uint32 per axis, uint8 number of parameters (each a
name and a float64), uint32 number of bytes, bytes; per scalar its name and a float64; payloads and scalars in the order
of their names. The shape of the array is not in it: the receiver knows it.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from tierline.core.errors import BadFrame
from tierline.core.types import Array, Payload
from tierline.learning.compressor import Compressed

Bytes = npt.NDArray[np.uint8]


def packed(message: Compressed) -> Bytes:
    """uint8[num_bytes and what the frame adds, some tens per payload]."""
    parts = [struct.pack("<IBB", message.stamp, len(message.payloads), len(message.scalars))]
    for name, payload in sorted(message.payloads.items()):
        axes = struct.pack(f"<B{len(payload.shape)}I", len(payload.shape), *payload.shape)
        parts += [_text(name), _text(payload.codec), _text(payload.dtype), axes, struct.pack("<B", len(payload.params))]
        parts += [_text(key) + struct.pack("<d", value) for key, value in sorted(payload.params.items())]
        parts += [struct.pack("<I", len(payload.data)), payload.data]
    parts += [_text(name) + struct.pack("<d", value) for name, value in sorted(message.scalars.items())]
    return np.frombuffer(b"".join(parts), np.uint8)


def unpacked(flat: Array | float | None, shape: tuple[int, ...]) -> Compressed:
    """What `packed` made of a message for an array of `shape`; takes what a message holds under a name, or not.

    Raises BadFrame for what `packed` does not make. Payloads are only cut out: codecs check them.
    """
    if not isinstance(flat, np.ndarray) or flat.dtype != np.uint8 or flat.ndim != 1:
        raise BadFrame("compressed message: expected an array of bytes, uint8 with one axis")
    reader = _Reader(flat.tobytes())
    stamp, num_payloads, num_scalars = reader.numbers("IBB")
    payloads = {reader.text(): reader.payload() for _ in range(num_payloads)}
    scalars = {reader.text(): reader.number() for _ in range(num_scalars)}
    if reader.rest or len(payloads) != num_payloads or len(scalars) != num_scalars:
        raise BadFrame("compressed message: bytes after its end, or a name twice")
    return Compressed(shape, stamp, payloads, scalars)


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<B", len(raw)) + raw


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def rest(self) -> int:
        return len(self._data) - self._at

    def take(self, num_bytes: int) -> bytes:
        if num_bytes > self.rest:
            raise BadFrame(f"compressed message: ends {num_bytes - self.rest} bytes too early")
        self._at += num_bytes
        return self._data[self._at - num_bytes : self._at]

    def numbers(self, letters: str) -> tuple[int, ...]:
        return struct.unpack(f"<{letters}", self.take(struct.calcsize(f"<{letters}")))

    def number(self) -> float:
        (value,) = struct.unpack("<d", self.take(8))
        return float(value)

    def text(self) -> str:
        (length,) = self.numbers("B")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise BadFrame("compressed message: a name is no UTF-8") from None

    def payload(self) -> Payload:
        codec, dtype = self.text(), self.text()
        (num_axes,) = self.numbers("B")
        shape = self.numbers(f"{num_axes}I")
        (num_params,) = self.numbers("B")
        params = {self.text(): self.number() for _ in range(num_params)}
        (num_bytes,) = self.numbers("I")
        return Payload(codec, dtype, shape, self.take(num_bytes), params)
