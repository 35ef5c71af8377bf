"""Folders and files that a command will write: looked at before the work, so that no work is lost."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tierline.core.errors import ConfigError

_USED = ("hierarchy.toml", "logs")
"""What every run leaves in its folder."""


def fresh_run_dir(folder: Path) -> None:
    """Make the folder of a run. Raises ConfigError for one that holds a run, whose answers and keys would mix with
    the new ones, and for one that cannot be written."""
    if any((folder / name).exists() for name in _USED):
        raise ConfigError(f"--run-dir {folder}: holds a run already; give another folder, or remove this one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable("--run-dir", folder, error) from None
    _try_in(folder, "--run-dir", folder)


@contextlib.contextmanager
def run_folder(given: Path | None, prefix: str, say: Callable[[str], None]) -> Iterator[Path]:
    """The folder that the user gave, else a temporary one. That stays, and is named, when a run has failed in it."""
    if given is not None:
        yield given.absolute()
        return
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    keep = False
    try:
        yield folder
    except Exception:
        keep = (folder / "logs").exists()
        if keep:
            say(f"files and logs of the failed run are kept in {folder}")
        raise
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def check_new_folder(flag: str, folder: Path) -> None:
    """Raise ConfigError unless the folder can be made, or written into where it exists. Makes nothing."""
    _try_in(_nearest(folder), flag, folder)


@contextlib.contextmanager
def whole_folder(folder: Path, last: str) -> Iterator[Path]:
    """A hidden folder to write into; at the end its files move to `folder`, the one named `last` as the last.

    Where the work is interrupted or fails, `folder` is as it was. Both lie on one file system.
    """
    above = _nearest(folder)
    with tempfile.TemporaryDirectory(dir=above, prefix=f".{folder.name}-", ignore_cleanup_errors=True) as name:
        yield Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(Path(name).iterdir(), key=lambda file: (file.name == last, file.name)):
            file.replace(folder / file.name)


def _nearest(folder: Path) -> Path:
    """The folder itself, or the nearest above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def check_file(flag: str, file: Path | None) -> None:
    """Raise ConfigError unless the file can be written. Makes nothing."""
    if file is None:
        return
    try:
        if file.exists():
            with file.open("ab"):
                return
    except OSError as error:
        raise _unwritable(flag, file, error) from None
    _try_in(file.absolute().parent, flag, file)


def _try_in(folder: Path, flag: str, path: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(flag, path, error) from None


def _unwritable(flag: str, path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{flag} {path}: cannot be written: {error.strerror}; give another")
