"""The compiled library as this process uses it, or None where NumPy serves.

`TIERLINE_KERNELS` says which: `auto` (default), `cpu` (compiled or an error; waits for the build) or `numpy`.
`auto` never makes a caller wait: a cached library is loaded at once; else it is built by a process in the background
while NumPy serves, and taken when it is there, for the bytes are the same. Only where it cannot be built does a
warning say so, once.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tierline.kernels import build

CHOICES = ("auto", "cpu", "numpy")

_TYPES: dict[str, Any] = {
    "p": ctypes.c_void_p,
    "n": ctypes.c_longlong,
    "i": ctypes.c_int,
    "u": ctypes.c_ulonglong,
    "f": ctypes.c_float,
    "": None,
}


class UnknownChoice(build.BuildError):
    """`TIERLINE_KERNELS` says what it cannot."""


class Loader:
    """Settles once whether there is a library; until then there is none, and every call looks again."""

    def __init__(self, choice: str = "auto") -> None:
        if choice not in CHOICES:
            raise UnknownChoice(f"TIERLINE_KERNELS={choice!r}: one of {', '.join(CHOICES)}")
        self._choice = choice
        self._settled = choice == "numpy"
        self._loaded: ctypes.CDLL | None = None
        self._builder: threading.Thread | None = None
        self._failure = ""
        self._rebuilt = False
        self._lock = threading.Lock()

    @property
    def is_settled(self) -> bool:
        return self._settled

    def library(self, *, wait: bool = False) -> ctypes.CDLL | None:
        """The library; ctypes releases the GIL around its calls. Raises BuildError if `cpu` is asked for and fails."""
        if not self._settled and (wait or self._builder is None or not self._builder.is_alive()):
            with self._lock:
                if not self._settled:
                    self._settle(wait or self._choice == "cpu")
        return self._loaded

    def _settle(self, wait: bool) -> None:
        try:
            while self._loaded is None and (path := self._find(wait)):
                self._load(path)
        except build.BuildError as error:
            if self._choice == "cpu":
                raise
            self._settled = True
            warnings.warn(f"codecs run in NumPy, which is slower: {error}", RuntimeWarning, stacklevel=4)
        self._settled = self._settled or self._loaded is not None

    def _find(self, wait: bool) -> Path | None:
        """The library's file; None while it is built in the background. Raises BuildError."""
        path = build.cached()
        if path is None and wait:
            return build.library()
        if path is None and self._builder is None:
            build.compiler()
            self._builder = threading.Thread(target=self._build, name="kernels-build", daemon=True)
            self._builder.start()
            return None
        if path is None and self._builder is not None and not self._builder.is_alive():
            path = build.cached()  # the build may have ended since the first look
            if path is None:
                raise build.BuildError(self._failure)
        return path

    def _load(self, path: Path) -> None:
        """A file that is no library of this system is removed, and built anew once. Raises BuildError."""
        try:
            self._loaded = ctypes.CDLL(str(path))
        except OSError as error:
            try:
                path.unlink(missing_ok=True)
            except OSError:  # it would be found again
                self._rebuilt = True
            if self._rebuilt:
                raise build.BuildError(f"the library that was built does not load: {error}") from None
            self._rebuilt, self._builder = True, None

    def _build(self) -> None:
        """In a process of its own, which goes on if this one ends."""
        try:
            done = subprocess.run(
                build_command(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                start_new_session=True,
                check=False,
            )
        except OSError as error:
            self._failure = str(error)
            return
        self._failure = done.stderr.strip() or f"the build ended with status {done.returncode}"


def build_command() -> list[str]:
    """Builds the library at low priority, for the first samples go first."""
    root = str(Path(build.__file__).parents[2])
    lines = (
        f"import os, sys; os.nice(10); sys.path.insert(0, {root!r})",
        "from tierline.kernels import build; sys.exit(build.main())",
    )
    return [sys.executable, "-c", "\n".join(lines)]


_loaders: list[Loader] = []


def library(*, wait: bool = False) -> ctypes.CDLL | None:
    """What `TIERLINE_KERNELS` asks for. None while it is built, unless `wait`; None for good where NumPy serves."""
    if not _loaders:
        _loaders.append(Loader(os.environ.get("TIERLINE_KERNELS", "auto")))
    return _loaders[0].library(wait=wait)


def bind(**signatures: str) -> SimpleNamespace | None:
    """Entries of the library by name, or None where NumPy serves (perhaps only until the library is built).

    A letter per argument: p pointer, n 64-bit count, i int, u unsigned 64-bit, f float; then perhaps a colon and the
    letter of what it returns. After `!` nothing is converted, which saves 0.25 us per call: an int is
    then passed as i, bytes as p, and the others as what `pointer`, `Counts` and ctypes make.
    """
    loaded = library()
    if loaded is None:
        return None
    entries = SimpleNamespace()
    for name, signature in signatures.items():
        letters, _, returns = signature.lstrip("!").partition(":")
        entry: Any = loaded[name]  # an own function object: attribute access would share it, and its types, by name
        entry.restype, entry.letters = _TYPES[returns], letters
        if signature[0] != "!":
            entry.argtypes = tuple(_TYPES[letter] for letter in letters)
        setattr(entries, name, entry)
    return entries


def binder(**signatures: str) -> Callable[[], SimpleNamespace | None]:
    """`bind` that is asked before every call: binds at the first one that finds the library."""
    bound: SimpleNamespace | None = None

    def entries() -> SimpleNamespace | None:
        nonlocal bound
        if bound is None:
            bound = bind(**signatures)
        return bound

    return entries


ZEROED_BYTES = 8192
"""Up to here `bytes(n)` is had sooner than `uncleared(None, n)`."""
ADVISED_BYTES = 1 << 22
"""From here a fault for each small page would take longer than a kernel; NumPy draws the line there as well."""
uncleared = ctypes.pythonapi.PyBytes_FromStringAndSize
uncleared.argtypes = (ctypes.c_char_p, ctypes.c_ssize_t)
uncleared.restype = ctypes.py_object
_bytes_address = ctypes.pythonapi.PyBytes_AsString
_bytes_address.argtypes = (ctypes.py_object,)
_bytes_address.restype = ctypes.c_void_p


def _in_large_pages(num_bytes: int) -> bytes:
    """`uncleared`, which the system may give large pages; where it does not, nothing is lost."""
    data: bytes = uncleared(None, num_bytes)
    start = _bytes_address(data)
    first = -(-start // _PAGE) * _PAGE
    _advise(first, (start + num_bytes - first) // _PAGE * _PAGE, _MADV_HUGEPAGE)
    return data


_PAGE, _MADV_HUGEPAGE = mmap.PAGESIZE, 14
if sys.platform == "linux":
    _advise = ctypes.CDLL(None).madvise
    _advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Counts(NamedTuple):
    """Of a batch's shape, once for each: rows and values in each of them as entries take them, the codec's bytes of all
    rows, and what makes a bytes object of so many, which a kernel fills before anybody reads it."""

    num_rows: ctypes.c_longlong
    num_values: ctypes.c_longlong
    num_bytes: int
    fresh: Callable[[int], bytes]


def counts(shape: tuple[int, ...], row_bytes: Callable[[int], int]) -> Counts | None:
    """None where the batch holds no values. Callers keep what they get: by shape, in an `lru_cache`."""
    num_rows, num_values = shape[0], math.prod(shape[1:])
    if num_rows * num_values == 0:
        return None
    num_bytes = num_rows * row_bytes(num_values)
    fresh: Callable[[int], bytes] = bytes if num_bytes <= ZEROED_BYTES else partial(uncleared, None)
    if num_bytes >= ADVISED_BYTES and sys.platform == "linux":
        fresh = _in_large_pages
    return Counts(ctypes.c_longlong(num_rows), ctypes.c_longlong(num_values), num_bytes, fresh)


class Buffer:
    """Fresh bytes that a kernel fills before anybody reads them: saves the copy that a NumPy buffer would need.

    An entry takes `data` where it takes a pointer; `address` is for those that fill a part.
    """

    __slots__ = ("address", "data")

    def __init__(self, num_bytes: int) -> None:
        self.data: bytes = bytes(num_bytes) if num_bytes <= ZEROED_BYTES else uncleared(None, num_bytes)
        self.address: int = _bytes_address(self.data)


_READABLE = 0x101
"""NPY_ARRAY_C_CONTIGUOUS and NPY_ARRAY_ALIGNED: one look instead of two."""


def as_rows(x_B: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A batch with any axes as (B, V); a view where the array is contiguous, as one that is written to must be."""
    return x_B.reshape(x_B.shape[0], math.prod(x_B.shape[1:]))


def readable(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """An array as kernels read it: contiguous and aligned; a copy only where it is not."""
    return array if array.flags.num & _READABLE == _READABLE else array.copy()


def address(array: npt.NDArray[Any]) -> int:
    """Where an array's first value lies; the array must be contiguous, aligned and outlive the call."""
    place: int = array.__array_interface__["data"][0]
    return place


def pointer(array: npt.NDArray[Any]) -> Any:
    """`address` as entries take it and nothing else does: had ten times as fast.

    NumPy keeps the pointer first behind the head that all objects of CPython have, which is looked at once below.
    """
    return _pointer_at(id(array) + _HEAD_BYTES)


_pointer_at = ctypes.c_void_p.from_address
_HEAD_BYTES = object.__basicsize__
_probe = np.arange(12.0)
if sys.implementation.name != "cpython" or any(pointer(a).value != address(a) for a in (_probe, _probe[5:])):

    def pointer(array: npt.NDArray[Any]) -> Any:
        return ctypes.c_void_p(address(array))
