"""A journal's tables in a SQLite file, and a folder beside it for whatever is long."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tierline.core.errors import DataError
from tierline.core.link.fields import Bytes
from tierline.learning.driver._slots import Slot, Slots, read_slot

_LONG = 64 << 10
"""Bytes from which on a content stands in a slot."""
_SETTINGS = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
"""
"""A commit is on the disk when it returns."""


class SqliteStore:
    """Raises DataError for a file that cannot be used."""

    types: ClassVar[Mapping[str, str]] = {"blob": "BLOB", "number": "INTEGER PRIMARY KEY"}
    remedy: ClassVar[str] = "remove it to start again"

    def __init__(self, path: Path, tables: str, slots_in_use: Sequence[str]) -> None:
        """`tables` makes what is not there; the queries tell the slots that must stay."""
        self.place, self._path = str(path), path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.executescript(_SETTINGS + tables)
            used = [text for query in slots_in_use for (text,) in self.execute(query)]
            self._slots = Slots(_folder(path), map(_slot, used))
        except (OSError, sqlite3.Error) as error:
            raise DataError(f"{path}: cannot be used as a journal: {error}; {self.remedy}") from error

    def close(self) -> None:
        self._db.close()

    def execute(self, query: str, row: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self._db.execute(query, row).fetchall()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[_Transaction]:
        transaction = _Transaction(self._slots)
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield transaction
        except BaseException:
            self._db.execute("ROLLBACK")
            self._slots.free(transaction.written)
            raise
        self._db.execute("COMMIT")
        self._slots.free(transaction.dropped)

    def content(self, body: bytes | None, slot: str | None) -> bytes:
        return content(self._path, body, slot)


class _Transaction:
    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self.written: list[Slot] = []
        self.dropped: list[Slot] = []

    def keep(self, parts: Sequence[Bytes]) -> tuple[Bytes | None, str | None]:
        if sum(map(len, parts)) < _LONG:
            return b"".join(parts), None
        self.written.append(self._slots.write(parts))
        return None, json.dumps(self.written[-1])

    def drop(self, rows: Iterable[tuple[Any, ...]]) -> None:
        self.dropped.extend(_slot(text) for (text,) in rows)


def content(path: Path, body: bytes | None, slot: str | None) -> bytes:
    """What `keep` was given, in the journal at `path`."""
    return read_slot(_folder(path), _slot(slot)) if slot is not None else body or b""


def remove(path: Path) -> None:
    """Raises DataError."""
    try:
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be removed: {error}") from error
    shutil.rmtree(_folder(path), ignore_errors=True)


def _folder(path: Path) -> Path:
    return path.with_name(f"{path.name}-long")


def _slot(text: str) -> Slot:
    return Slot(*json.loads(text))
