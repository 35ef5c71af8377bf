"""Compiles `src/` into the CPU library, once per source, compiler, flags and machine type, into a cache folder."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).parent / "src"
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-Wall", "-Wextra")
LINK = ("-shared", "-fPIC")


class BuildError(Exception):
    """No library: no compiler, or the compiler's own words."""


def cache_dir() -> Path:
    """`TIERLINE_CACHE_DIR`, else `tierline` in `XDG_CACHE_HOME`, else in `~/.cache`."""
    if given := os.environ.get("TIERLINE_CACHE_DIR"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tierline"


def compiler() -> str:
    """`CXX`, else the first of c++, g++, clang++ on PATH. Raises BuildError."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and (path := shutil.which(name)):
            return path
    raise BuildError("no C++ compiler on PATH; install g++ or clang, or set CXX")


def translation_unit() -> str:
    """One unit of all headers: a codec is added by adding its header."""
    return "".join(f'#include "{path.name}"\n' for path in sorted(SOURCE.glob("*.h")))


def cached() -> Path | None:
    """The newest library of these sources and flags that some compiler has made for this machine type."""
    try:
        made = sorted(_folder().glob(f"{_stem(FLAGS)}-*.so"), key=lambda path: path.stat().st_mtime)
    except OSError:
        return None
    return made[-1] if made else None


def library(cxx: str | None = None, flags: tuple[str, ...] = FLAGS) -> Path:
    """Path of the library of this compiler, built now unless the cache holds it. Raises BuildError."""
    cxx = cxx or compiler()
    version = _run([cxx, "--version"]).splitlines()[0]
    machine = _run([cxx, "-dumpmachine"]).split("-")[0]  # of a cross compiler, not this one
    path = _folder() / f"{_stem(flags, machine)}-{_digest(version)}.so"
    if not path.is_file():
        _compile(cxx, flags, path)
    return path


def main() -> int:
    """Build ahead: `python -m tierline.kernels.build`. Prints the path, or why there is none."""
    try:
        print(library())
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _folder() -> Path:
    return cache_dir() / "kernels"


def _stem(flags: tuple[str, ...], machine: str = platform.machine()) -> str:
    return f"{machine}-{_digest(*flags, *LINK, *(p.read_text() for p in sorted(SOURCE.glob('*.h'))))}"


def _digest(*parts: str) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


def _compile(cxx: str, flags: tuple[str, ...], path: Path) -> None:
    """Into a temporary name beside `path` and renamed, so that nobody meets half a file; processes take turns."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (path.parent / ".lock").open("w") as lock, tempfile.TemporaryDirectory(dir=path.parent) as folder:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.is_file():
                return
            unit, made = Path(folder) / "kernels.cpp", Path(folder) / "kernels.so"
            unit.write_text(translation_unit())
            _run([cxx, *flags, *LINK, "-I", str(SOURCE), str(unit), "-o", str(made)])
            made.replace(path)
    except OSError as error:
        raise BuildError(f"{path.parent}: {error.strerror}; name a writable folder in TIERLINE_CACHE_DIR") from error


def _run(command: list[str], *, with_errors: bool = False) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise BuildError(f"{command[0]} failed with status {done.returncode}: {done.stderr.strip()[:2000]}")
    return done.stdout + done.stderr if with_errors else done.stdout


if __name__ == "__main__":
    sys.exit(main())
