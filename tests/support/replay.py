"""Records what the kernel library here is called with and leaves behind, for `replay.cpp` on another processor."""

from __future__ import annotations

import struct
from collections.abc import Callable
from ctypes import c_int, c_void_p, string_at
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tierline.kernels import library

SOURCE = Path(__file__).with_suffix(".cpp")


_KINDS = {c_int: "i", None: ""}


class Recorder:
    """Stands between kernel modules and their library while `install` is in force."""

    def __init__(self) -> None:
        self.num_calls = 0
        self._calls: list[bytes] = []
        self._sizes: dict[int, int] = {}

    def install(self, kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Kernels reach arrays by `address` or `pointer`, give bytes as they are, and find entries by `_compiled`."""
        if "_compiled" in vars(kernel):
            entries = SimpleNamespace(**{name: self._entry(name, e) for name, e in vars(kernel._compiled()).items()})
            monkeypatch.setattr(kernel, "_compiled", lambda: entries)
        for name in {"address", "pointer"} & vars(kernel).keys():
            monkeypatch.setattr(kernel, name, self._address)

    def write(self, path: Path) -> None:
        path.write_bytes(struct.pack("<I", self.num_calls) + b"".join(self._calls))

    def _address(self, array: np.ndarray) -> c_void_p:
        pointer = c_void_p(library.address(array))
        self._sizes[pointer.value or 0] = array.nbytes
        return pointer

    def _entry(self, name: str, real: Any) -> Callable[..., Any]:
        kinds, answer = real.letters, _KINDS[real.restype]

        def call(*arguments: Any) -> Any:
            pointers = [argument for kind, argument in zip(kinds, arguments, strict=True) if kind == "p"]
            before = [self._content(pointer) for pointer in pointers]
            returned = real(*arguments)
            after = [self._content(pointer) for pointer in pointers]
            parts, contents = [_text(name.encode()), _text(kinds.encode())], zip(before, after, strict=True)
            for kind, argument in zip(kinds, arguments, strict=True):
                if kind == "p":
                    parts += map(_text, next(contents))
                else:
                    number = getattr(argument, "value", argument)
                    parts.append(struct.pack("<d" if kind == "f" else "<q", number))
            parts += [_text(answer.encode()), struct.pack("<q", returned or 0)]
            self._calls.append(b"".join(parts))
            self.num_calls += 1
            return returned

        return call

    def _content(self, pointer: c_void_p | bytes) -> bytes:
        """A copy: entries fill bytes objects in place."""
        if isinstance(pointer, bytes):
            return bytes(bytearray(pointer))
        place = pointer.value or 0
        return string_at(place, self._sizes[place])


def _text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content
