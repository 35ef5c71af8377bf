"""Engines that took time to build, kept in a folder. A file that is not exactly what was asked for is never trusted.

A file is a line that names the format, a line of JSON (what it was built from and for, length and sha256 of what
follows), and the engine. Its name is the digest of the first part. TensorRT runs what an engine says, so a file that
another user of the machine could have written counts as foreign.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tierline.core.errors import EngineError
from tierline.kernels.build import cache_dir

_log = logging.getLogger("tierline.engine")
_MAGIC = b"tierline engine 1\n"
_SUFFIX = ".engine"
_MAX_HEAD = 1 << 16


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an engine depends on. Networks are strongly typed, so precision is part of the ONNX file's digest."""

    onnx: str
    """sha256 of the ONNX file."""
    kind: str
    """`tensorrt` or `tensorrt_rtx`."""
    version: str
    arch: str
    """Compute capability, `sm_87`."""
    gpu: str
    """The GPU's name: kernels are timed on one model. Empty for an engine that was built for an `arch` elsewhere."""
    machine: str
    """`aarch64`, `x86_64`."""
    jetpack: str
    """Version of Jetson's system (`R36.4.3`); empty elsewhere."""
    max_batch: int
    typical_batch: int
    workspace_bytes: int

    @property
    def digest(self) -> str:
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The line of JSON."""

    key: Key
    section: str
    precision: str
    """Types that layers compute in, for people."""
    num_bytes: int
    sha256: str


class Entry(msgspec.Struct, frozen=True):
    """One file of the folder; `problem` says why it will not be used."""

    path: Path
    head: Head | None
    problem: str = ""


class EngineCache:
    """The folder `engines` of the cache folder, unless another is given."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_dir() / "engines"

    def check_writable(self) -> None:
        """Raise EngineError unless a file can be written: asked before the work, so that no work is lost."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise self._unwritable(error) from error

    def load(self, key: Key) -> bytes | None:
        """The engine of this key; None where there is none, or none to be trusted."""
        path = self.path(key)
        if not path.exists():
            return None
        entry, plan = _read(path)
        problem = entry.problem
        if not problem and (entry.head is None or entry.head.key != key):
            problem = "it was built from or for something else"
        if problem:
            _log.warning("%s: not used and built again: %s", path, problem)
            return None
        return plan

    def store(self, key: Key, plan: bytes, *, section: str, precision: str) -> Path:
        """Write an engine, whole or not at all. Raises EngineError."""
        head = Head(key, section, precision, len(plan), hashlib.sha256(plan).hexdigest())
        path = self.path(key)
        self._write(path, _MAGIC + msgspec.json.encode(head) + b"\n" + plan)
        return path

    def timing(self, key: Key) -> bytes:
        """What builds of this kind, version and GPU have timed; empty where nothing is kept. TensorRT checks it."""
        path = self._timing_path(key)
        try:
            return b"" if _foreign(path) else path.read_bytes()
        except OSError:
            return b""

    def store_timing(self, key: Key, timing: bytes) -> None:
        """Raises EngineError."""
        if timing:
            self._write(self._timing_path(key), timing)

    def entries(self) -> Iterator[Entry]:
        """All files, read and checked."""
        for path in sorted(self.folder.glob(f"*{_SUFFIX}")):
            yield _read(path)[0]

    def remove(self, path: Path) -> None:
        """Raises EngineError."""
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def path(self, key: Key) -> Path:
        """Where the engine of this key is, or would be."""
        return self.folder / f"{key.digest[:32]}{_SUFFIX}"

    def _timing_path(self, key: Key) -> Path:
        # Not the model, but what was timed on.
        about = (key.kind, key.version, key.arch, key.gpu, key.machine, key.jetpack)
        return self.folder / f"{hashlib.sha256(repr(about).encode()).hexdigest()[:32]}.timing"

    def _write(self, path: Path, content: bytes) -> None:
        """Beside its place and then renamed, so that nobody meets half a file."""
        self.check_writable()
        try:
            with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as file:
                try:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                    os.fchmod(file.fileno(), 0o644)
                    Path(file.name).replace(path)
                except BaseException:
                    Path(file.name).unlink(missing_ok=True)
                    raise
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> EngineError:
        where = "name a writable folder in TIERLINE_CACHE_DIR"
        return EngineError(f"{self.folder}: engines cannot be kept here ({error.strerror}); {where}")


def _read(path: Path) -> tuple[Entry, bytes]:
    """A file and the engine in it, empty where the entry has a problem."""
    try:
        if problem := _foreign(path):
            return Entry(path, None, problem), b""
        raw = path.read_bytes()
    except OSError as error:
        return Entry(path, None, f"it cannot be read ({error.strerror})"), b""
    end = raw.find(b"\n", len(_MAGIC), _MAX_HEAD)
    if not raw.startswith(_MAGIC) or end < 0:
        return Entry(path, None, "it is no engine file of this version of tierline"), b""
    try:
        head = msgspec.json.decode(raw[len(_MAGIC) : end], type=Head)
    except msgspec.MsgspecError as error:
        return Entry(path, None, f"its head is damaged: {error}"), b""
    plan = raw[end + 1 :]
    if len(plan) != head.num_bytes or hashlib.sha256(plan).hexdigest() != head.sha256:
        return Entry(path, head, "its content is not what its head says"), b""
    return Entry(path, head), plan


def _foreign(path: Path) -> str:
    """Why a file may not be one that this user wrote; empty where it is."""
    state = path.stat()
    if state.st_uid not in (0, os.geteuid()):
        return f"it belongs to another user ({state.st_uid})"
    if state.st_mode & 0o002:
        return "every user may write to it"
    return ""
