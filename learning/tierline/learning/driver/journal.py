"""What a learning process must not forget: states, letters not yet settled, and who was heard. A SQLite file, and a
folder beside it for whatever is long.

A letter is written before it is sent, and sent again word for word until its receiver has no use for it any more. What
ended a wait that time decided is written before the rule hears of it, so that a turn taken again goes the same way.
The end of a turn is one transaction: state, place in the streams, measurements, and the letters settled meanwhile.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tierline.core.arrays import Floats
from tierline.core.errors import ConfigError, DataError
from tierline.core.link.letters import Head, Letter
from tierline.core.types import NodeId
from tierline.learning.driver._peer import Mark, Step
from tierline.learning.driver._slots import Slot, Slots, read_slot
from tierline.learning.driver._state import state_from_bytes, state_to_parts
from tierline.learning.driver.world import Participants
from tierline.learning.rule import State

SCHEMA = 2
_LONG = 64 << 10
"""Bytes from which on a content stands in a slot."""

Cursors = Mapping[tuple[str, NodeId], Mark]
"""Of each stream and sender: the last letter that a finished turn has read."""

_IS_LONG = "slot IS NOT NULL"

_SETTINGS = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
"""
"""A commit is on the disk when it returns."""

_TABLES = """
CREATE TABLE IF NOT EXISTS journal (schema INTEGER, run TEXT);
CREATE TABLE IF NOT EXISTS node (me TEXT PRIMARY KEY, round INTEGER, num_resyncs INTEGER, next_seq INTEGER,
  state BLOB, slot TEXT, cursors TEXT);
CREATE TABLE IF NOT EXISTS content (id INTEGER PRIMARY KEY, body BLOB, slot TEXT);
CREATE TABLE IF NOT EXISTS letter (
  me TEXT, seq INTEGER, receiver TEXT, step TEXT, round INTEGER, tag TEXT, kind TEXT, mark TEXT, content INTEGER,
  PRIMARY KEY (me, seq));
CREATE TABLE IF NOT EXISTS answer (me TEXT, step TEXT, round INTEGER, number INTEGER, members TEXT,
  PRIMARY KEY (me, step, round, number));
CREATE TABLE IF NOT EXISTS report (me TEXT, round INTEGER, document TEXT, model BLOB, PRIMARY KEY (me, round));
"""


@dataclass(frozen=True, slots=True)
class Saved:
    """A node as of its last finished turn."""

    round: int
    num_resyncs: int
    next_seq: int
    """Of the next letter; numbers are not used again."""
    state: State
    cursors: Cursors


@dataclass(frozen=True, slots=True)
class Report:
    """What one turn of a node came to; `model` is its flat model, where that is measured."""

    document: Mapping[str, Any]
    model: bytes | None = None


class Journal:
    """The journal of the nodes of one process in one run. Raises ConfigError for a file of another run, DataError for
    one that cannot be read."""

    def __init__(self, path: Path, run: str) -> None:
        self._path, self._run = path, run
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Opened and closed on one thread, used on another, never by two at a time.
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.executescript(_SETTINGS + _TABLES)
            found = self._db.execute("SELECT schema, run FROM journal").fetchone()
            self._check(found)
            used = self._db.execute(
                f"SELECT slot FROM node WHERE {_IS_LONG} UNION SELECT slot FROM content WHERE {_IS_LONG}"
            )
            self._slots = Slots(_folder(path), [_slot(text) for (text,) in used.fetchall()])
        except (OSError, sqlite3.Error) as error:
            raise DataError(f"{path}: cannot be used as a journal: {error}; remove it to start again") from error

    def _check(self, found: tuple[int, str] | None) -> None:
        if found is None:
            self._db.execute("INSERT INTO journal VALUES (?, ?)", (SCHEMA, self._run))
            return
        schema, run = found
        what = ""
        if schema != SCHEMA:
            what = f"a journal of schema {schema}, this version writes schema {SCHEMA}"
        elif run != self._run:
            what = f"the journal of run {run!r}, not of {self._run!r}"
        if what:
            self._db.close()
            raise ConfigError(f"{self._path}: {what}; remove it to start again")

    def close(self) -> None:
        self._db.close()

    def saved(self, me: NodeId) -> Saved | None:
        """Where a node stands; None where it has finished no turn."""
        row = self._db.execute(
            "SELECT round, num_resyncs, next_seq, cursors, state, slot FROM node WHERE me = ?", (me,)
        ).fetchone()
        if row is None:
            return None
        cursors = {(tag, NodeId(sender)): (round, number) for tag, sender, round, number in json.loads(row[3])}
        return Saved(row[0], row[1], row[2], state_from_bytes(_content(self._path, *row[4:])), cursors)

    def letters(self, me: NodeId) -> list[Letter]:
        """A node's letters that are not settled, in the order in which they were written."""
        rows = self._db.execute(
            "SELECT seq, receiver, step, round, tag, kind, mark, content FROM letter WHERE me = ? ORDER BY seq", (me,)
        ).fetchall()
        bodies: dict[int, bytes] = {}
        letters = []
        for seq, receiver, step, round, tag, kind, mark, content in rows:
            if content not in bodies:
                found = self._db.execute("SELECT body, slot FROM content WHERE id = ?", (content,)).fetchone()
                bodies[content] = _content(self._path, *found)
            place = tuple(json.loads(mark)) if mark else None
            head = Head(self._run, me, NodeId(receiver), seq, step, round, tag, kind, place)
            letters.append(Letter(head, bodies[content]))
        return letters

    def write(self, groups: Iterable[tuple[bytes, Sequence[Head]]]) -> list[Letter]:
        """Write letters, those of one content together, and number them; all of them or none."""
        written = []
        with self._transaction() as transaction:
            for body, heads in groups:
                kept = transaction.keep([body])
                content = self._db.execute("INSERT INTO content (body, slot) VALUES (?, ?)", kept).lastrowid
                for head in heads:
                    place = json.dumps(head.mark) if head.mark else None
                    row = (head.receiver, head.step, head.round, head.tag, head.kind, place, content)
                    self._db.execute(
                        "INSERT INTO letter VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (head.sender, head.seq, *row)
                    )
                    written.append(Letter(replace(head, run=self._run), body))
        return written

    def answer(self, me: NodeId, step: Step, number: int) -> frozenset[NodeId] | None:
        """Whom the `number`-th wait of a turn that has not finished had heard, if that is known."""
        row = self._db.execute(
            "SELECT members FROM answer WHERE me = ? AND step = ? AND round = ? AND number = ?", (me, *step, number)
        ).fetchone()
        return None if row is None else frozenset(NodeId(member) for member in json.loads(row[0]))

    def note_answer(self, me: NodeId, step: Step, number: int, members: Iterable[NodeId]) -> None:
        self._db.execute("INSERT INTO answer VALUES (?, ?, ?, ?, ?)", (me, *step, number, json.dumps(sorted(members))))

    def commit(self, me: NodeId, saved: Saved, settled: Iterable[int], report: Report | None) -> None:
        """The end of a turn."""
        cursors = json.dumps([(tag, sender, *mark) for (tag, sender), mark in saved.cursors.items()])
        with self._transaction() as transaction:
            transaction.drop(self._db.execute(f"SELECT slot FROM node WHERE me = ? AND {_IS_LONG}", (me,)))
            state = transaction.keep(state_to_parts(saved.state))
            row = (me, saved.round, saved.num_resyncs, saved.next_seq, *state, cursors)
            self._db.execute("INSERT OR REPLACE INTO node VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            self._settle(me, settled, transaction)
            if report is not None:
                document = json.dumps(report.document)
                self._db.execute("INSERT INTO report VALUES (?, ?, ?, ?)", (me, saved.round, document, report.model))

    def settle(self, me: NodeId, seqs: Iterable[int]) -> None:
        """Forget letters that need not be sent again."""
        with self._transaction() as transaction:
            self._settle(me, seqs, transaction)

    def _settle(self, me: NodeId, seqs: Iterable[int], transaction: _Transaction) -> None:
        self._db.executemany("DELETE FROM letter WHERE me = ? AND seq = ?", [(me, seq) for seq in seqs])
        unused = "id NOT IN (SELECT content FROM letter)"
        transaction.drop(self._db.execute(f"SELECT slot FROM content WHERE {unused} AND {_IS_LONG}"))
        self._db.execute(f"DELETE FROM content WHERE {unused}")

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db, self._slots)


class _Transaction:
    """All or nothing, slots included."""

    def __init__(self, db: sqlite3.Connection, slots: Slots) -> None:
        self._db, self._slots = db, slots
        self._written: list[Slot] = []
        self._dropped: list[Slot] = []

    def keep(self, parts: Sequence[bytes | memoryview]) -> tuple[bytes | None, str | None]:
        """The parts one after the other: as they are if short, else the name of their slot."""
        if sum(map(len, parts)) < _LONG:
            return b"".join(parts), None
        self._written.append(self._slots.write(parts))
        return None, json.dumps(self._written[-1])

    def drop(self, rows: Iterable[tuple[str]]) -> None:
        """What stands in these slots is not needed from the end of this on."""
        self._dropped.extend(_slot(text) for (text,) in rows)

    def __enter__(self) -> _Transaction:
        self._db.execute("BEGIN IMMEDIATE")
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._db.execute("COMMIT" if kind is None else "ROLLBACK")
        self._slots.free(self._dropped if kind is None else self._written)


class JournalReader:
    """Looks into a journal that another process writes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)

    def close(self) -> None:
        self._db.close()

    def rounds(self) -> dict[NodeId, int]:
        """Turns that each node has finished."""
        return {NodeId(me): round for me, round in self._db.execute("SELECT me, round FROM node")}

    def reports(self, after: int) -> list[tuple[int, NodeId, int, Mapping[str, Any]]]:
        """What turns came to, in the order in which they ended: number above `after`, node, rounds, document."""
        rows = self._db.execute(
            "SELECT rowid, me, round, document FROM report WHERE rowid > ? ORDER BY rowid", (after,)
        )
        return [(number, NodeId(me), round, json.loads(document)) for number, me, round, document in rows]

    def model(self, me: NodeId, round: int) -> Floats | None:
        """A node's flat model after so many rounds, where it was kept."""
        row = self._db.execute("SELECT model FROM report WHERE me = ? AND round = ?", (me, round)).fetchone()
        return None if row is None or row[0] is None else np.frombuffer(row[0], np.float32)

    def states(self) -> dict[NodeId, State]:
        """Every node's state as of its last finished turn."""
        rows = self._db.execute("SELECT me, state, slot FROM node").fetchall()
        return {NodeId(me): state_from_bytes(_content(self._path, *kept)) for me, *kept in rows}

    def participants(self) -> Participants:
        """Of the nodes of this journal."""
        rows = self._db.execute("SELECT me, step, round, number, members FROM answer")
        return {(NodeId(m), s, r, n): frozenset(map(NodeId, json.loads(found))) for m, s, r, n, found in rows}


def _folder(path: Path) -> Path:
    return path.with_name(f"{path.name}-long")


def _slot(text: str) -> Slot:
    return Slot(*json.loads(text))


def _content(path: Path, body: bytes | None, slot: str | None) -> bytes:
    return read_slot(_folder(path), _slot(slot)) if slot is not None else body or b""
