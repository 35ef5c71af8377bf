"""Where letters that come in are kept until they are whole: little memory, whatever the number of streams.

A hundred children that send at once would otherwise have a hundred updates in the memory of their parent, though it
adds them up one by one. So two letters, and as many more as take no more than FREE_BYTES with them, are kept in memory.
The rest go to files without a name, which the system's cache holds for as long as it has room; no child waits for
another. Whoever works on letters more slowly than they come holds up the ends of the next ones meanwhile.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import IO

from tierline.core.errors import DataError

FREE_BYTES = 16 << 20
_NUM_LONG = 2


class Intake:
    """What a process is receiving. `folder` takes the files; None: the system's for temporary ones, which may be in
    memory itself."""

    def __init__(self, folder: Path | None = None) -> None:
        self.num_bytes = 0
        """Announced by the senders of the letters that are kept in memory."""
        self._folder, self._num = folder, 0
        self._num_held, self._free = 0, asyncio.Event()

    def hold(self) -> None:
        """Somebody has begun to work on a letter, or will."""
        self._num_held += 1
        self._free.clear()

    def release(self) -> None:
        """And has done so."""
        self._num_held -= 1
        self._free.set()

    async def room(self) -> None:
        """Wait until no letter is being worked on."""
        while self._num_held:
            self._free.clear()
            await self._free.wait()

    def open(self, num_bytes: int) -> Arriving:
        """Room for a letter of so many bytes. Raises DataError where no file can be made."""
        if self._num >= _NUM_LONG and self.num_bytes + num_bytes > FREE_BYTES:
            return Arriving(None, num_bytes, self._folder)
        self._num += 1
        self.num_bytes += num_bytes
        return Arriving(self, num_bytes, None)

    def leave(self, num_bytes: int) -> None:
        """A letter is not in memory any more."""
        self._num -= 1
        self.num_bytes -= num_bytes


class Arriving:
    """One letter, in memory if `intake` is given, else in a file."""

    def __init__(self, intake: Intake | None, num_bytes: int, folder: Path | None) -> None:
        self.num_missing = num_bytes
        self._intake, self._num_bytes = intake, num_bytes
        self._parts: list[bytes | memoryview] = []
        self._file: IO[bytes] | None = None
        if intake is None:
            try:
                if folder is not None:
                    folder.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  # until it is taken
            except OSError as error:
                raise DataError(f"no file for a letter of {num_bytes} bytes: {error}") from error

    @property
    def in_memory(self) -> bool:
        return self._file is None

    def append(self, data: bytes | memoryview) -> None:
        """The next piece, of at most `num_missing` bytes. Raises DataError where the disk is full."""
        self.num_missing -= len(data)
        if self._file is None:
            self._parts.append(data)
            return
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise DataError(f"no room for a letter of {self._num_bytes} bytes: {error}") from error

    def take(self) -> bytes:
        """All of it; it is not kept here any longer."""
        if self._file is not None:
            self._file.seek(0)
            content = self._file.read()
        else:
            content = b"".join(self._parts)
        self.close()
        return content

    def close(self) -> None:
        """Forget it. Does nothing twice."""
        self._parts.clear()
        if self._file is not None:
            self._file.close()
        if self._intake is not None:
            self._intake.leave(self._num_bytes)
            self._intake = None
