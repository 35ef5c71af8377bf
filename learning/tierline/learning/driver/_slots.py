"""Long contents of a journal: each in a file of its own, which is written over once nobody needs it any more.

A file that is written over has its pages and its place on the disk already, so this costs about a tenth of a long BLOB
(no copy into a write-ahead log, none out of it, no length to bring to the disk).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tierline.core.errors import DataError

_STAMP_BYTES = 8


class Slot(NamedTuple):
    """Where a content stands."""

    number: int
    stamp: int
    """Of this writing, at the file's start: a reader beside the writer can tell that the file was written over."""
    num_bytes: int


class Slots:
    """The files of one journal."""

    def __init__(self, folder: Path, used: Iterable[Slot]) -> None:
        """`used`: those that must stay; the rest, left over from what was never committed, may be written over."""
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        kept = {slot.number for slot in used}
        found = {int(path.name): path.stat().st_size for path in folder.iterdir() if path.name.isdigit()}
        self._free = {number: size for number, size in found.items() if number not in kept}
        self._next = max(found, default=-1) + 1

    def write(self, parts: Sequence[bytes | memoryview]) -> Slot:
        """The parts, one after the other; they are on the disk when this returns."""
        num_bytes = sum(len(part) for part in parts)
        is_new = not self._free
        number = self._next if is_new else min(self._free, key=lambda n: abs(self._free[n] - num_bytes))
        stamp = os.urandom(_STAMP_BYTES)
        # Not "wb", which would first give back the pages that are to be written over.
        fd = os.open(self._folder / str(number), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(stamp)
            for part in parts:
                file.write(part)
            file.flush()
            os.fdatasync(file.fileno())
        if is_new:
            self._next += 1
            _sync_folder(self._folder)
        self._free.pop(number, None)
        return Slot(number, int.from_bytes(stamp, "little"), num_bytes)

    def free(self, slots: Iterable[Slot]) -> None:
        """These may be written over."""
        for slot in slots:
            self._free[slot.number] = slot.num_bytes


def read_slot(folder: Path, slot: Slot) -> bytes:
    """Its content. Raises DataError where it is not there any more, or not whole."""
    path = folder / str(slot.number)
    stamp = slot.stamp.to_bytes(_STAMP_BYTES, "little")
    with contextlib.suppress(OSError), path.open("rb") as file:
        is_it = file.read(_STAMP_BYTES) == stamp
        raw = file.read(slot.num_bytes)
        file.seek(0)
        if is_it and len(raw) == slot.num_bytes and file.read(_STAMP_BYTES) == stamp:
            return raw
    raise DataError(f"{path}: not what the journal beside it speaks of; remove both to start again")


def _sync_folder(folder: Path) -> None:
    """A new file's name is on the disk, too."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
