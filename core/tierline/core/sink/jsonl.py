"""Answers appended to a file, one JSON object per line (`telemetry.record`)."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import BinaryIO

from tierline.core.errors import ConfigError
from tierline.core.protocols import Outcome
from tierline.core.telemetry.record import outcome_line

_log = logging.getLogger("tierline.sink")


class Jsonl:
    """Each answer is one append of a whole line: readers may follow, and several processes may share the file.

    A write that fails (disk full) drops the answer: counted in `num_dropped`, said once until writing works again.
    """

    def __init__(self, *, location: str) -> None:
        if not location:
            raise ConfigError("no file; write jsonl:PATH")
        self._path = Path(location)
        try:
            _try_to_write(self._path)
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot be opened for writing: {error.strerror}") from error
        self._file: BinaryIO | None = None
        self._failing = False
        self.num_dropped = 0

    async def put(self, outcome: Outcome) -> None:
        line = outcome_line(outcome)
        try:
            if self._file is None:
                self._file = self._path.open("ab", buffering=0)
            num_written = self._file.write(line)
            if num_written < len(line):
                raise OSError(f"only {num_written} of {len(line)} bytes were written")
            self._failing = False
        except OSError as error:
            self.num_dropped += 1
            if not self._failing:
                self._failing = True
                _log.warning("sink jsonl:%s: %s; answers are dropped until writing works again", self._path, error)

    async def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _try_to_write(path: Path) -> None:
    """Raise OSError unless the file can be appended to. Makes none."""
    if path.exists():
        path.open("ab").close()
    elif not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
