"""Jobs of a fleet as the root keeps them: what runs, what nodes reported, measurements, versions of models. SQLite."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from tierline.core.arrays import Floats
from tierline.core.errors import DataError
from tierline.core.types import NodeId
from tierline.learning.experiment.scene import Row
from tierline.learning.fleet.job import Job

Status = Literal["waiting", "running", "stopped", "failed", "complete"]

KEPT_VERSIONS = 10
"""Of the model of one job: the newest."""

_SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS job (id INTEGER PRIMARY KEY AUTOINCREMENT, document TEXT, status TEXT, error TEXT,
  submitted_at TEXT, ended_at TEXT);
CREATE TABLE IF NOT EXISTS report (number INTEGER PRIMARY KEY, job INTEGER, me TEXT, round INTEGER, document TEXT,
  model BLOB, UNIQUE (job, me, round));
CREATE TABLE IF NOT EXISTS metric (job INTEGER, place INTEGER, round INTEGER, metric TEXT, value REAL,
  PRIMARY KEY (job, place));
CREATE TABLE IF NOT EXISTS version (job INTEGER, round INTEGER, layout TEXT, model BLOB, PRIMARY KEY (job, round));
"""


class JobStore:
    """All on one thread, but for `note` and reports. Raises DataError for a file that cannot be used."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise DataError(f"{path}: cannot be used for jobs: {error}") from error

    def close(self) -> None:
        self._db.close()

    # --- jobs -------------------------------------------------------------------------------------------------

    def add(self, make: Any) -> Job:
        """Keep the job that `make(id)` makes, to wait for its turn."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            now = _now()
            id_ = self._db.execute(
                "INSERT INTO job (document, status, error, submitted_at, ended_at) VALUES ('', 'waiting', '', ?, '')",
                (now,),
            ).lastrowid
            job: Job = make(id_)
            self._db.execute("UPDATE job SET document = ? WHERE id = ?", (msgspec.json.encode(job).decode(), id_))
        return job

    def job(self, id_: int) -> tuple[Job, Status, str, str, str]:
        """Job, status, error, when it was submitted and when it ended. Raises DataError."""
        row = self._db.execute(
            "SELECT document, status, error, submitted_at, ended_at FROM job WHERE id = ?", (id_,)
        ).fetchone()
        if row is None:
            known = ", ".join(map(str, self.ids()[-10:])) or "none"
            raise DataError(f"no job {id_} here; there are: {known}")
        return (msgspec.json.decode(row[0], type=Job), *row[1:])

    def ids(self, *statuses: Status) -> list[int]:
        """Oldest first; all where no status is given."""
        rows = self._db.execute("SELECT id, status FROM job ORDER BY id").fetchall()
        return [id_ for id_, status in rows if not statuses or status in statuses]

    def set(self, id_: int, status: Status, error: str = "") -> None:
        ended = _now() if status in ("failed", "complete") else ""
        self._db.execute("UPDATE job SET status = ?, error = ?, ended_at = ? WHERE id = ?", (status, error, ended, id_))

    # --- measurements -----------------------------------------------------------------------------------------

    def note(self, id_: int, rows: Sequence[Row], layout: Any, model: Floats | None) -> None:
        """Measurements of one round, and the model that was measured. On any thread: it has a connection of its own,
        since a long model takes its time, and those who read do not wait for it."""
        with contextlib.closing(sqlite3.connect(self._path, isolation_level=None)) as db, db:
            db.execute("BEGIN IMMEDIATE")
            (place,) = db.execute("SELECT COUNT(*) FROM metric WHERE job = ?", (id_,)).fetchone()
            db.executemany(
                "INSERT INTO metric VALUES (?, ?, ?, ?, ?)", [(id_, place + i, *row) for i, row in enumerate(rows)]
            )
            if rows and model is not None:
                version = (id_, rows[0][0], json.dumps(layout), model.tobytes())
                db.execute("INSERT OR REPLACE INTO version VALUES (?, ?, ?, ?)", version)
                db.execute(
                    "DELETE FROM version WHERE job = ? AND round NOT IN "
                    "(SELECT round FROM version WHERE job = ? ORDER BY round DESC LIMIT ?)",
                    (id_, id_, KEPT_VERSIONS),
                )
            if rows:
                db.execute("UPDATE report SET model = NULL WHERE job = ? AND round <= ?", (id_, rows[0][0]))

    def metrics(self, id_: int, after: int = 0) -> list[Row]:
        return [
            (round, metric, value)
            for round, metric, value in self._db.execute(
                "SELECT round, metric, value FROM metric WHERE job = ? AND place >= ? ORDER BY place", (id_, after)
            )
        ]

    def version(self, id_: int, round: int = 0) -> tuple[int, Any, Floats]:
        """Round, layout and flat model; 0: the newest. Raises DataError."""
        rows = self._db.execute("SELECT round, layout, model FROM version WHERE job = ? ORDER BY round", (id_,))
        kept = {found: (found, json.loads(layout), np.frombuffer(raw, np.float32)) for found, layout, raw in rows}
        if not kept or (round and round not in kept):
            rounds = ", ".join(map(str, kept)) or "none"
            raise DataError(f"job {id_}: no model of round {round or 'any'} is kept; there are: {rounds}")
        return kept[round or max(kept)]


class JobReports:
    """What the nodes of one job have reported."""

    def __init__(self, store: JobStore, id_: int) -> None:
        self._db, self._path, self._id = store._db, store._path, id_
        self._here: dict[NodeId, set[int]] = {}
        for me, round in self._db.execute("SELECT me, round FROM report WHERE job = ?", (id_,)):
            self._here.setdefault(NodeId(me), set()).add(round)
        self._rounds: dict[NodeId, int] = {}
        for me in self._here:
            self._count(me)

    def add(self, me: NodeId, round: int, document: str, model: bytes | None) -> None:
        """Keep the first of each node and round. On any thread, like `note`."""
        with contextlib.closing(sqlite3.connect(self._path, isolation_level=None)) as db:
            db.execute(
                "INSERT OR IGNORE INTO report (job, me, round, document, model) VALUES (?, ?, ?, ?, ?)",
                (self._id, me, round, document, model),
            )
        self._here.setdefault(me, set()).add(round)
        self._count(me)

    def _count(self, me: NodeId) -> None:
        num = self._rounds.get(me, 0)
        while num + 1 in self._here[me]:
            num += 1
        self._rounds[me] = num

    def rounds(self) -> Mapping[NodeId, int]:
        return self._rounds

    def reports(self, after: int) -> list[tuple[int, NodeId, int, Mapping[str, Any]]]:
        rows = self._db.execute(
            "SELECT number, me, round, document FROM report WHERE job = ? AND number > ? ORDER BY number",
            (self._id, after),
        )
        return [(number, NodeId(me), round, json.loads(document)) for number, me, round, document in rows]

    def model(self, me: NodeId, round: int) -> Floats | None:
        row = self._db.execute(
            "SELECT model FROM report WHERE job = ? AND me = ? AND round = ?", (self._id, me, round)
        ).fetchone()
        return None if row is None or row[0] is None else np.frombuffer(row[0], np.float32)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
