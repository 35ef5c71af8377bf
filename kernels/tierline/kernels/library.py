"""The compiled library as this process uses it, or None where NumPy serves.

`TIERLINE_KERNELS` says which: `auto` (default: compiled if it can be, else NumPy with one warning), `cpu` (compiled or
an error) or `numpy`.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy.typing as npt

from tierline.kernels import build

CHOICES = ("auto", "cpu", "numpy")

_TYPES: dict[str, Any] = {
    "p": ctypes.c_void_p,
    "n": ctypes.c_longlong,
    "i": ctypes.c_int,
    "u": ctypes.c_ulonglong,
    "f": ctypes.c_float,
}

_new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
_new_bytes.argtypes = (ctypes.c_char_p, ctypes.c_ssize_t)
_new_bytes.restype = ctypes.py_object
_bytes_address = ctypes.pythonapi.PyBytes_AsString
_bytes_address.argtypes = (ctypes.py_object,)
_bytes_address.restype = ctypes.c_void_p


@cache
def library() -> ctypes.CDLL | None:
    """The library; ctypes releases the GIL around its calls. Raises BuildError if `cpu` is asked for and fails."""
    choice = os.environ.get("TIERLINE_KERNELS", "auto")
    if choice not in CHOICES:
        raise build.BuildError(f"TIERLINE_KERNELS={choice!r}: one of {', '.join(CHOICES)}")
    if choice == "numpy":
        return None
    try:
        return ctypes.CDLL(str(build.library()))
    except (build.BuildError, OSError) as error:
        if choice == "cpu":
            raise
        warnings.warn(f"codecs run in NumPy, which is slower: {error}", RuntimeWarning, stacklevel=2)
        return None


def bind(**signatures: str) -> SimpleNamespace | None:
    """Entries of the library by name, or None where NumPy serves.

    A letter per argument: p pointer, n 64-bit count, i int, u unsigned 64-bit, f float. Entries return nothing.
    """
    loaded = library()
    if loaded is None:
        return None
    entries = SimpleNamespace()
    for name, signature in signatures.items():
        entry = loaded[name]  # an own function object: attribute access would share it, and its types, by name
        entry.argtypes, entry.restype = tuple(_TYPES[letter] for letter in signature), None
        setattr(entries, name, entry)
    return entries


class Buffer:
    """Fresh bytes that a kernel fills before anybody reads them: saves the copy that a NumPy buffer would need."""

    def __init__(self, num_bytes: int) -> None:
        self.data: bytes = _new_bytes(None, num_bytes)
        self.address: int = _bytes_address(self.data)


def address(array: npt.NDArray[Any]) -> int:
    """Where an array's first value lies; the array must be contiguous and outlive the call."""
    pointer: int = array.__array_interface__["data"][0]
    return pointer
