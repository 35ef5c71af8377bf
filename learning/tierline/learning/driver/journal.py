"""What a learning process must not forget: states, letters not yet settled, and who was heard. In a SQLite file, or in
a PostgreSQL database by its URL.

A letter is written before it is sent, and sent again word for word until its receiver has no use for it any more. What
ended a wait that time decided is written before the rule hears of it, so that a turn taken again goes the same way.
The end of a turn is one transaction: state, place in the streams, measurements, and the letters settled meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tierline.core.arrays import Floats
from tierline.core.errors import ConfigError
from tierline.core.link.fields import Bytes, Rope
from tierline.core.link.letters import Head, Letter
from tierline.core.types import NodeId
from tierline.learning.driver import _postgres, _sqlite
from tierline.learning.driver._peer import Mark, Step
from tierline.learning.driver._postgres import PostgresStore
from tierline.learning.driver._sqlite import SqliteStore
from tierline.learning.driver._state import state_from_bytes, state_to_parts
from tierline.learning.driver.world import Participants
from tierline.learning.rule import State

SCHEMA = 2
Cursors = Mapping[tuple[str, NodeId], Mark]
"""Of each stream and sender: the last letter that a finished turn has read."""

Answers = Mapping[tuple[Step, int], frozenset[NodeId]]
"""By step and number of the wait: whom it had heard when it ended."""

_IS_LONG = "slot IS NOT NULL"

_TABLES = """
CREATE TABLE IF NOT EXISTS journal (schema BIGINT, run TEXT);
CREATE TABLE IF NOT EXISTS node (me TEXT PRIMARY KEY, round BIGINT, num_resyncs BIGINT, next_seq BIGINT,
  state {blob}, slot TEXT, cursors TEXT);
CREATE TABLE IF NOT EXISTS content (id {number}, body {blob}, slot TEXT);
CREATE TABLE IF NOT EXISTS letter (
  me TEXT, seq BIGINT, receiver TEXT, step TEXT, round BIGINT, tag TEXT, kind TEXT, mark TEXT, content BIGINT,
  PRIMARY KEY (me, seq));
CREATE TABLE IF NOT EXISTS answer (me TEXT, step TEXT, round BIGINT, number BIGINT, members TEXT,
  PRIMARY KEY (me, step, round, number));
CREATE TABLE IF NOT EXISTS report (me TEXT, round BIGINT, document TEXT, model {blob}, PRIMARY KEY (me, round));
"""
_UPSERT = (
    "INSERT INTO node (me, round, num_resyncs, next_seq, state, slot, cursors) VALUES (?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (me) DO UPDATE SET round = excluded.round, num_resyncs = excluded.num_resyncs, "
    "next_seq = excluded.next_seq, state = excluded.state, slot = excluded.slot, cursors = excluded.cursors"
)
_SLOTS = (f"SELECT slot FROM node WHERE {_IS_LONG}", f"SELECT slot FROM content WHERE {_IS_LONG}")


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


class Transaction(Protocol):
    """All or nothing, what is long included."""

    def keep(self, parts: Sequence[Bytes]) -> tuple[Bytes | None, str | None]:
        """Columns `body` and `slot` of the parts one after the other."""
        ...

    def drop(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """What stands in these slots is not needed from the end of this on."""
        ...


class Store(Protocol):
    """Tables, wherever they are. A transaction is on the disk when it has ended."""

    @property
    def place(self) -> str: ...

    @property
    def remedy(self) -> str:
        """How a user makes place for another journal."""
        ...

    def execute(self, query: str, row: Sequence[Any] = ()) -> list[tuple[Any, ...]]: ...

    def transaction(self) -> contextlib.AbstractContextManager[Transaction]: ...

    def content(self, body: bytes | None, slot: str | None) -> bytes:
        """What `keep` was given."""
        ...

    def close(self) -> None: ...


def open_store(place: Path | str, name: str) -> Store:
    """A file, or the database of a URL, where `name` tells this journal from others. Raises as the stores do."""
    if isinstance(place, Path):
        return SqliteStore(place, _TABLES.format(**SqliteStore.types), _SLOTS)
    return PostgresStore(place, name, _TABLES.format(**PostgresStore.types))


def remove_journal(place: Path | str, name: str) -> None:
    """As if there had never been one."""
    if isinstance(place, Path):
        _sqlite.remove(place)
    else:
        _postgres.remove(place, name)


class Journal:
    """The journal of the nodes of one process in one run. Raises ConfigError for one of another run, and what stores
    raise."""

    def __init__(self, place: Path | str, run: str, *, name: str = "") -> None:
        """`name` tells it from others of the same database; by default it is the run's."""
        self._run = run
        self._open: Transaction | None = None
        self._store = store = open_store(place, name or run)
        found = store.execute("SELECT schema, run FROM journal")
        what = ""
        if not found:
            store.execute("INSERT INTO journal VALUES (?, ?)", (SCHEMA, run))
        elif found[0][0] != SCHEMA:
            what = f"a journal of schema {found[0][0]}, this version writes schema {SCHEMA}"
        elif found[0][1] != run:
            what = f"the journal of run {found[0][1]!r}, not of {run!r}"
        if what:
            store.close()
            raise ConfigError(f"{store.place}: {what}; {store.remedy}")

    def close(self) -> None:
        self._store.close()

    def saved(self, me: NodeId) -> Saved | None:
        """Where a node stands; None where it has finished no turn."""
        rows = self._store.execute(
            "SELECT round, num_resyncs, next_seq, cursors, state, slot FROM node WHERE me = ?", (me,)
        )
        if not rows:
            return None
        (row,) = rows
        cursors = {(tag, NodeId(sender)): (round, number) for tag, sender, round, number in json.loads(row[3])}
        return Saved(row[0], row[1], row[2], state_from_bytes(self._store.content(*row[4:])), cursors)

    def letters(self, me: NodeId) -> list[Letter]:
        """A node's letters that are not settled, in the order in which they were written."""
        rows = self._store.execute(
            "SELECT seq, receiver, step, round, tag, kind, mark, content FROM letter WHERE me = ? ORDER BY seq", (me,)
        )
        bodies: dict[int, Rope] = {}
        letters = []
        for seq, receiver, step, round, tag, kind, mark, content in rows:
            if content not in bodies:
                (found,) = self._store.execute("SELECT body, slot FROM content WHERE id = ?", (content,))
                bodies[content] = (self._store.content(*found),)
            place = tuple(json.loads(mark)) if mark else None
            head = Head(self._run, me, NodeId(receiver), seq, step, round, tag, kind, place)
            letters.append(Letter(head, bodies[content]))
        return letters

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """All that is written inside is one transaction."""
        with self._transaction() as self._open:
            try:
                yield
            finally:
                self._open = None

    def write(self, letters: Iterable[Letter]) -> None:
        """Write letters; those of one content keep it once. All of them or none."""
        contents: dict[int, int] = {}
        with self._transaction() as transaction:
            for letter in letters:
                head, rope = letter.head, letter.content
                if id(rope) not in contents:
                    kept = transaction.keep(rope)
                    (row,) = self._store.execute("INSERT INTO content (body, slot) VALUES (?, ?) RETURNING id", kept)
                    contents[id(rope)] = row[0]
                place = json.dumps(head.mark) if head.mark else None
                self._store.execute(
                    "INSERT INTO letter VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        *(head.sender, head.seq, head.receiver, head.step, head.round, head.tag, head.kind, place),
                        contents[id(rope)],
                    ),
                )

    def answers(self, me: NodeId, saved: Saved | None) -> Answers:
        """Whom the waits of turns that have not finished had heard, as far as time has decided that."""
        first = (0, 0) if saved is None else (saved.round, saved.num_resyncs)
        rows = self._store.execute(
            "SELECT step, round, number, members FROM answer WHERE me = ? "
            "AND (step = 'turn' AND round >= ? OR step = 'resync' AND round >= ?)",
            (me, *first),
        )
        return {((s, r), n): frozenset(map(NodeId, json.loads(found))) for s, r, n, found in rows}

    def note_answer(self, me: NodeId, step: Step, number: int, members: Iterable[NodeId]) -> None:
        with self._transaction():
            row = (me, *step, number, json.dumps(sorted(members)))
            self._store.execute("INSERT INTO answer VALUES (?, ?, ?, ?, ?)", row)

    def commit(self, me: NodeId, saved: Saved, settled: Iterable[int], report: Report | None) -> None:
        """The end of a turn."""
        cursors = json.dumps([(tag, sender, *mark) for (tag, sender), mark in saved.cursors.items()])
        with self._transaction() as transaction:
            transaction.drop(self._store.execute(f"SELECT slot FROM node WHERE me = ? AND {_IS_LONG}", (me,)))
            state = transaction.keep(state_to_parts(saved.state))
            row = (me, saved.round, saved.num_resyncs, saved.next_seq, *state, cursors)
            self._store.execute(_UPSERT, row)
            self._settle(me, settled, transaction)
            if report is not None:
                document = json.dumps(report.document)
                self._store.execute("INSERT INTO report VALUES (?, ?, ?, ?)", (me, saved.round, document, report.model))

    def settle(self, me: NodeId, seqs: Iterable[int]) -> None:
        """Forget letters that need not be sent again."""
        with self._transaction() as transaction:
            self._settle(me, seqs, transaction)

    def _settle(self, me: NodeId, seqs: Iterable[int], transaction: Transaction) -> None:
        for seq in seqs:
            self._store.execute("DELETE FROM letter WHERE me = ? AND seq = ?", (me, seq))
        unused = "id NOT IN (SELECT content FROM letter)"
        transaction.drop(self._store.execute(f"SELECT slot FROM content WHERE {unused} AND {_IS_LONG}"))
        self._store.execute(f"DELETE FROM content WHERE {unused}")

    def _transaction(self) -> contextlib.AbstractContextManager[Transaction]:
        """The one that is open already, or one of its own."""
        return self._store.transaction() if self._open is None else contextlib.nullcontext(self._open)


class JournalReader:
    """Looks into a journal in a file that another process writes."""

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
        return {NodeId(me): state_from_bytes(_sqlite.content(self._path, *kept)) for me, *kept in rows}

    def participants(self) -> Participants:
        """Of the nodes of this journal."""
        rows = self._db.execute("SELECT me, step, round, number, members FROM answer")
        return {(NodeId(m), s, r, n): frozenset(map(NodeId, json.loads(found))) for m, s, r, n, found in rows}
