"""Long fields of protobuf messages, put in and taken out without copying what is in them: a parser of whole messages
copies every value at least once, which for models costs more than all the rest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tierline.core.errors import BadFrame

Bytes = bytes | memoryview
Rope = tuple[Bytes, ...]
"""Bytes in parts, so that what is long need not be copied to stand between what is short."""

_LONG = 1 << 22
"""Bytes from which on NumPy asks for large pages: touching new memory in small ones takes longer than copying."""
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
_MAX_VARINT_BYTES = 10


def between(rope: Rope, start: int, stop: int) -> Rope:
    """The parts of some of its bytes."""
    parts: list[Bytes] = []
    for part in rope:
        if start < len(part) and stop > 0:
            parts.append(memoryview(part)[max(0, start) : stop])
        start, stop = start - len(part), stop - len(part)
    return tuple(parts)


def whole(parts: Sequence[Bytes]) -> Bytes:
    """The parts behind one another, not to be written to."""
    num_bytes = sum(map(len, parts))
    if len(parts) == 1:
        return parts[0]
    if num_bytes < _LONG:
        return b"".join(parts)
    out, at = np.empty(num_bytes, np.uint8).data, 0
    for part in parts:
        out[at : at + len(part)] = part
        at += len(part)
    return out.toreadonly()


def field(number: int, parts: Sequence[Bytes]) -> list[Bytes]:
    """Pieces that are, one after the other, a field whose value is bytes or a message."""
    return [_varint(number << 3 | _LENGTH), _varint(sum(map(len, parts))), *parts]


def cut(message: memoryview, number: int, what: str) -> tuple[list[memoryview], bytes]:
    """The values of a field of bytes or messages, as views, and the message without them. Raises BadFrame where the
    bytes are no message, `what` they should be; what is inside of other fields is not looked at."""
    try:
        return _cut(message, number)
    except ValueError as error:
        raise BadFrame(f"{len(message)} bytes that are no {what}: {error}") from None


def _cut(message: memoryview, number: int) -> tuple[list[memoryview], bytes]:
    values: list[memoryview] = []
    rest: list[memoryview] = []
    at, size = 0, len(message)
    while at < size:
        start = at
        tag, at = _read_varint(message, at)
        kind = tag & 7
        if kind == _VARINT:
            _, at = _read_varint(message, at)
        elif kind == _LENGTH:
            length, at = _read_varint(message, at)
            at += length
        elif kind in _FIXED_BYTES:
            at += _FIXED_BYTES[kind]
        else:
            raise ValueError(f"a field of the wire type {kind}")
        if at > size:
            raise ValueError("a field that is longer than its message")
        if kind == _LENGTH and tag >> 3 == number:
            values.append(message[at - length : at])
        else:
            rest.append(message[start:at])
    return values, b"".join(rest)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    value = 0
    for index, byte in enumerate(message[at : at + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise ValueError("a number without an end")
