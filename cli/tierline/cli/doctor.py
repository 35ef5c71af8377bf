"""The checks behind `tierline doctor`. Each looks at one thing and says how to mend it."""

from __future__ import annotations

import ctypes
import importlib
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import numpy as np

from tierline.core import catalog
from tierline.core.config.sections import default_state_dir
from tierline.core.errors import TierlineError
from tierline.core.telemetry.environment import environment

# (module, distribution)
_REQUIRED = (
    ("numpy", "numpy"),
    ("grpc", "grpcio"),
    ("google.protobuf", "protobuf"),
    ("onnxruntime", "onnxruntime"),
    ("msgspec", "msgspec"),
    ("typer", "typer"),
    ("rich", "rich"),
    ("PIL", "pillow"),
    ("cryptography", "cryptography"),
)
_EXTRAS = {
    "train": ("torch", "onnx", "onnxscript", "scikit-learn"),
    "cloud": ("prometheus-client", "grpcio-health-checking"),
    "jetson": ("pycuda",),
    "cuda": ("tensorrt", "pycuda"),
}

TWICE = bytes.fromhex(
    "08083a3f0a0e0a01780a017812017922034164641201675a140a0178120f0a0d080112090a031201420a02080162140a0179"
    "120f0a0d080112090a031201420a02080142040a00100d"
)
"""An ONNX model: y = x + x, float32 [B, 1] (ir_version 8, opset 13), as `onnx.helper` serialises it."""


@dataclass(frozen=True, slots=True)
class Check:
    """`fail` is required, `warn` is needed for some features only."""

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    fix: str = ""


def run_checks(state_dir: Path | None = None) -> list[Check]:
    """All checks, required ones first."""
    checks = [
        _python(),
        *_dependencies(),
        _engine(),
        kernels(),
        _loopback(),
        _state(state_dir or default_state_dir("node")),
    ]
    return [*checks, *_extras(), _video(), *_hardware()]


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    if (3, 10) <= sys.version_info[:2] <= (3, 13):
        return Check("python", "ok", found)
    return Check("python", "fail", found, "install Python 3.10 to 3.13 and make a fresh environment with it")


def _dependencies() -> Iterator[Check]:
    for module, name in _REQUIRED:
        try:
            importlib.import_module(module)
            yield Check(name, "ok", metadata.version(name))
        except Exception as error:  # a broken binary raises anything
            yield Check(name, "fail", _first_line(error), f"pip install --force-reinstall {name}")


def _engine() -> Check:
    name = "onnxruntime runs a model"
    try:
        engine = catalog.make("engine", "onnxruntime", model=TWICE, name="doctor")
        (y,) = engine.run({"x": np.array([[1.5]], np.float32)}).values()
        engine.close()
    except (TierlineError, OSError) as error:
        return Check(name, "fail", _first_line(error), "pip install --force-reinstall onnxruntime")
    if y.tolist() == [[3.0]]:
        return Check(name, "ok", "1.5 + 1.5 = 3")
    return Check(name, "fail", f"1.5 + 1.5 = {y.item()}", "pip install --force-reinstall onnxruntime")


def kernels() -> Check:
    """Compiled, still to be compiled, or NumPy and why; writes nothing."""
    from tierline.kernels import build, library

    choice = os.environ.get("TIERLINE_KERNELS", "auto")
    if choice == "numpy":
        return Check("kernels", "warn", "NumPy: TIERLINE_KERNELS=numpy", "unset it for compiled codecs")
    if choice not in library.CHOICES:
        fix = f"set it to one of {', '.join(library.CHOICES)}, or unset it"
        return Check("kernels", "fail", f"TIERLINE_KERNELS={choice}", fix)
    try:
        path = build.cached()
        if path is None:
            compiler, folder = " ".join(build.compiler()), build.cache_dir()
            found, fix = f"the first use compiles them with {compiler}", ""
            _, reason = _unwritable(folder)
            if reason:
                found, fix = f"NumPy: {folder}: {reason}", "name a writable folder in TIERLINE_CACHE_DIR"
        else:
            found, fix = f"compiled: {path}", ""
            ctypes.CDLL(str(path))
            fix = _wrong_cxx()
    except build.BuildError as error:
        found = f"NumPy: {_first_line(error)}"
        fix = "compiled codecs are several times faster: install g++ or clang, or do what the line says"
    except OSError as error:
        found, fix = f"NumPy: {_first_line(error)}", f"delete {path}: the next use compiles it anew"
    if not fix:
        return Check("kernels", "ok", found)
    serves = found.startswith("compiled")
    return Check("kernels", "fail" if choice == "cpu" and not serves else "warn", found, fix)


def _wrong_cxx() -> str:
    """What to do about a `CXX` that is no command: nothing needs it until sources change."""
    from tierline.kernels import build

    try:
        build.named_compiler()
    except build.BuildError as error:
        return _first_line(error)
    return ""


def _loopback() -> Check:
    try:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            return Check("loopback", "ok", "127.0.0.1 can be listened on")
    except OSError as error:
        return Check("loopback", "fail", error.strerror or "", "bring the interface up: ip link set lo up")


def _state(state_dir: Path) -> Check:
    nearest, reason = _unwritable(state_dir)
    if reason:
        fix = f"make {nearest} writable, or set node.state_dir to another folder"
        return Check("state folder", "fail", f"{state_dir}: {reason}", fix)
    return Check("state folder", "ok", str(state_dir))


def _unwritable(wanted: Path) -> tuple[Path, str]:
    """The folder, or the nearest place above it that exists, and why nothing can be written there: empty if it can.

    A check makes no folders.
    """
    places = (wanted, *wanted.absolute().parents)
    nearest = next(place for place in places if os.path.exists(place))  # noqa: PTH110  (Path.exists may raise)
    try:
        with tempfile.TemporaryFile(dir=nearest):
            return nearest, ""
    except OSError as error:
        return nearest, error.strerror or str(error)


def _extras() -> Iterator[Check]:
    for extra, names in _EXTRAS.items():
        missing = [name for name in names if not _version(name)]
        if missing:
            fix = f"only if you need it: pip install 'tierline[{extra}]'"
            yield Check(f"extra {extra}", "warn", f"without {', '.join(missing)}", fix)
        else:
            yield Check(f"extra {extra}", "ok", ", ".join(f"{name} {_version(name)}" for name in names))


def _video() -> Check:
    found = [program for program in ("ffmpeg", "gst-launch-1.0") if shutil.which(program)]
    if found:
        return Check("video", "ok", ", ".join(found))
    fix = "for video:, rtsp: and gst: sources install ffmpeg or gstreamer1.0-tools with your system's packages"
    return Check("video", "warn", "neither ffmpeg nor gst-launch-1.0", fix)


def _hardware() -> Iterator[Check]:
    hardware = environment()["hardware"]
    for key in ("cpu", "cores", "memory_mib", "board", "power_mode", "temperatures_c"):
        if key in hardware:
            yield Check(key.replace("_", " "), "ok", str(hardware[key]))
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads and threads != "1":
        yield Check("OMP_NUM_THREADS", "warn", threads, "unset it: several nodes on one machine fight for cores")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
