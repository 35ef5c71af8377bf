"""Compiles `src/` into the CPU library, once per source, compiler, flags and machine type, into a cache folder."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).parent / "src"
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-Wall", "-Wextra")
LINK = ("-shared", "-fPIC")


class BuildError(Exception):
    """No library: no compiler, the compiler's own words, or no place to keep it."""


def cache_dir() -> Path:
    """`TIERLINE_CACHE_DIR`, else `tierline` in `XDG_CACHE_HOME`, else in `~/.cache`. Raises BuildError."""
    if given := os.environ.get("TIERLINE_CACHE_DIR"):
        return Path(given)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tierline"
    except RuntimeError:  # a user without an entry in the system's list, as in some containers
        raise BuildError("this user has no home folder; name a writable folder in TIERLINE_CACHE_DIR") from None


def compiler() -> tuple[str, ...]:
    """Words of the command: `CXX`, else the first of c++, g++, clang++ on PATH. Raises BuildError."""
    if named := named_compiler():
        return named
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return (name,)
    raise BuildError("no C++ compiler on PATH; install g++ or clang, or set CXX")


def named_compiler() -> tuple[str, ...]:
    """Words of `CXX`, empty where it is not set. Raises BuildError where it is no command."""
    given = os.environ.get("CXX")
    if given and not shutil.which(_words(given)[0]):
        raise BuildError(f"CXX={given}: no such command; name a C++ compiler there, or unset it")
    return _words(given) if given else ()


def translation_unit() -> str:
    """One unit of all headers: a codec is added by adding its header."""
    return "".join(f'#include "{path.name}"\n' for path in sorted(SOURCE.glob("*.h")))


def cached() -> Path | None:
    """The newest library of these sources and flags that some compiler has made for this machine type."""
    try:
        return whole(_folder(), _stem(FLAGS), ".so")
    except BuildError:
        return None


def library(cxx: str | None = None, flags: tuple[str, ...] = FLAGS) -> Path:
    """Path of the library of this compiler, built now unless the cache holds it. Raises BuildError."""
    command = _words(cxx) if cxx else compiler()
    version = _asked(command, "--version").partition("\n")[0]
    machine = _asked(command, "-dumpmachine").split("-")[0]  # of a cross compiler, not this one
    start = f"{_stem(flags, machine)}-{_digest(version.encode())}"
    return whole(_folder(), start, ".so") or _compile(command, flags, _folder(), start)


def whole(folder: Path, start: str, suffix: str) -> Path | None:
    """The newest file of this start that is what `named` says: one that was cut or damaged is as good as none.

    Looked at before anybody loads it, for a library that was cut ends the process that loads it.
    """
    try:
        made = sorted(folder.glob(f"{start}-*{suffix}"), key=lambda path: path.stat().st_mtime, reverse=True)
        return next((path for path in made if named(path, path.read_bytes()) == path), None)
    except OSError:
        return None


def named(path: Path, content: bytes) -> Path:
    """`path` with the last part of its stem exchanged for the digest of `content`."""
    return path.with_name(f"{path.stem.rpartition('-')[0]}-{_digest(content)}{path.suffix}")


def store(path: Path, content: bytes) -> None:
    """Written beside `path` and renamed, so that nobody meets half a file, nor after the power was cut."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            part = Path(folder) / path.name
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        place = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(place)
        finally:
            os.close(place)
    except OSError as error:
        raise _unwritable(path.parent, error) from error


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


def _words(command: str) -> tuple[str, ...]:
    """Of a command such as `ccache g++`; a path with spaces in it is one word where it names a program."""
    if path := shutil.which(command):
        return (path,)
    try:
        return tuple(shlex.split(command)) or (command,)
    except ValueError as error:
        raise BuildError(f"{command}: {error}; write CXX as a shell would take it") from None


def _stem(flags: tuple[str, ...], machine: str = platform.machine()) -> str:
    texts = [path.read_text() for path in sorted(SOURCE.glob("*.h"))]
    return f"{machine}-{_digest(*(part.encode() for part in (*flags, *LINK, *texts)))}"


def _digest(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part + b"\0")
    return digest.hexdigest()


def _compile(command: tuple[str, ...], flags: tuple[str, ...], folder: Path, start: str) -> Path:
    """Processes take turns. What is there under this start and not whole is removed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock, tempfile.TemporaryDirectory(dir=folder) as scratch:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path := whole(folder, start, ".so"):
                return path
            unit, made = Path(scratch) / "kernels.cpp", Path(scratch) / "kernels.so"
            unit.write_text(translation_unit())
            _run([*command, *flags, *LINK, "-I", str(SOURCE), str(unit), "-o", str(made)])
            if not made.is_file() or not (content := made.read_bytes()):
                raise BuildError(f"{shlex.join(command)} wrote nothing: is it a C++ compiler?")
            discard(folder, start, ".so")
            path = named(folder / f"{start}-.so", content)
            store(path, content)
            return path
    except OSError as error:
        raise _unwritable(folder, error) from error


def discard(folder: Path, start: str, suffix: str) -> None:
    """Remove files of this start that are not whole; another process may use the others."""
    for path in folder.glob(f"{start}-*{suffix}"):
        with contextlib.suppress(OSError):
            if named(path, path.read_bytes()) != path:
                path.unlink()


def _unwritable(folder: Path, error: OSError) -> BuildError:
    return BuildError(f"{folder}: {error.strerror}; name a writable folder in TIERLINE_CACHE_DIR")


class _Refused(BuildError):
    """A command ran and failed."""


def _asked(command: tuple[str, ...], option: str) -> str:
    try:
        return _run([*command, option])
    except _Refused:
        raise BuildError(f"{shlex.join(command)}: no C++ compiler, for it does not answer {option}") from None


def _run(command: list[str], *, with_errors: bool = False) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise _Refused(f"{command[0]} failed with status {done.returncode}: {done.stderr.strip()[:2000]}")
    return done.stdout + done.stderr if with_errors else done.stdout


if __name__ == "__main__":
    sys.exit(main())
