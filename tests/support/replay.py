"""Records what the kernel library here is called with and leaves behind, for `replay.cpp` on another processor."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tierline.kernels import library

SOURCE = Path(__file__).with_suffix(".cpp")


class Recorder:
    """Stands between kernel modules and their library while `install` is in force."""

    def __init__(self) -> None:
        self.num_calls = 0
        self._calls: list[bytes] = []
        self._sizes: dict[int, int] = {}

    def install(self, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        """Modules reach memory through `address` and `Buffer`, and entries through `bind`, once cached."""
        module._compiled.cache_clear()
        monkeypatch.setattr(module, "address", self._address)
        monkeypatch.setattr(module, "Buffer", self._buffer)
        monkeypatch.setattr(module, "bind", self._bind)

    def write(self, path: Path) -> None:
        path.write_bytes(struct.pack("<I", self.num_calls) + b"".join(self._calls))

    def _address(self, array: np.ndarray) -> int:
        pointer = library.address(array)
        self._sizes[pointer] = array.nbytes
        return pointer

    def _buffer(self, num_bytes: int) -> library.Buffer:
        made = library.Buffer(num_bytes)
        self._sizes[made.address] = num_bytes
        return made

    def _bind(self, **signatures: str) -> SimpleNamespace:
        real = library.bind(**signatures)
        assert real is not None
        return SimpleNamespace(
            **{name: self._entry(name, kinds, getattr(real, name)) for name, kinds in signatures.items()}
        )

    def _entry(self, name: str, kinds: str, real: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            before = [self._content(a) if kind == "p" else b"" for kind, a in zip(kinds, arguments, strict=True)]
            real(*arguments)
            parts = [_text(name.encode()), _text(kinds.encode())]
            for kind, argument, content in zip(kinds, arguments, before, strict=True):
                if kind == "p":
                    parts += [_text(content), _text(self._content(argument))]
                else:
                    parts.append(struct.pack("<d" if kind == "f" else "<q", argument))
            self._calls.append(b"".join(parts))
            self.num_calls += 1

        return call

    def _content(self, pointer: int | bytes) -> bytes:
        return pointer if isinstance(pointer, bytes) else ctypes.string_at(pointer, self._sizes[pointer])


def _text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content
