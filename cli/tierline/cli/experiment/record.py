"""One long-form file of metrics per run: JSON lines, the first says what ran and with what, the last how it ended.

Beside it lies, while the run is under way, a checkpoint: the states of all nodes after some round, as named arrays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tierline.core.arrays import Params
from tierline.core.errors import ConfigError, DataError, NodeFailed
from tierline.core.telemetry.environment import environment
from tierline.core.types import NodeId
from tierline.learning.errors import Deadlock
from tierline.learning.experiment.scene import Row
from tierline.learning.rule import State

SCHEMA = 1
MODEL = ".model.npz"
"""In place of the metrics file's suffix: the final model."""

_IDENTITY = ("schema", "experiment", "arm", "seed", "on", "strategy", "gossip", "setting")
"""Fields of the first line that must agree for a run to be gone on with."""


class Record:
    """The file of one run, as it is being written; every line is there as soon as it is known.

    Raises ConfigError where a run lies there already, unless `resume`: then its measurements count, up to the round
    of its checkpoint, or all of them where it came to its end.
    """

    def __init__(self, path: Path, head: Mapping[str, Any], *, resume: bool = False) -> None:
        self._path, self._checkpoint = path, path.with_suffix(".npz")
        self._head = {"record": "run", "schema": SCHEMA, **head, "environment": environment()}
        self.arm, self.seed = head["arm"], head["seed"]
        self.rows: list[Row] = []
        self.error = ""
        self.is_complete = False
        if path.exists():
            if not resume:
                raise ConfigError(f"--out: {path} holds a run already; add --resume, or give another folder")
            self._read()
        if not self.is_complete:
            self._begin()

    def note(self, row: Row) -> None:
        self.rows.append(row)
        self._put(self._line(row))

    def end_with(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """What else is told of a run that has come to its end."""
        for line in lines:
            self._put(line)

    def save(self, round: int, states: Mapping[NodeId, State], so_far: Mapping[str, float]) -> None:
        """Replace the checkpoint by these states; `so_far` are the counts that a driver would begin anew."""
        arrays: dict[str, Any] = {f"/{key}": value for key, value in so_far.items()}
        arrays["/round"] = round
        for me, state in states.items():
            arrays |= {f"{me}/{key}": value for key, value in state.items()}
        fresh = self._checkpoint.with_suffix(".tmp")
        with fresh.open("wb") as file:
            np.savez(file, **arrays)
        fresh.replace(self._checkpoint)

    def saved(self, nodes: Iterable[NodeId] = ()) -> tuple[int, dict[NodeId, State], dict[str, float]] | None:
        """Round, states and counts of the checkpoint, if there is one. Raises DataError for one that is damaged."""
        if not self._checkpoint.exists():
            return None
        try:
            with np.load(self._checkpoint, allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
            round = int(arrays.pop("/round"))
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{self._checkpoint}: not a checkpoint ({error}); remove it to start again") from error
        states: dict[NodeId, dict[str, Any]] = {me: {} for me in nodes}  # also those that remember nothing
        so_far: dict[str, float] = {}
        for key, value in arrays.items():
            me, _, name = key.partition("/")
            if me:
                states.setdefault(NodeId(me), {})[name] = value if value.ndim else value.item()
            else:
                so_far[name] = float(value)
        return round, dict(states), so_far

    def keep_model(self, x: Params) -> None:
        """The final model, as named arrays beside the measurements."""
        with self._path.with_suffix(MODEL).open("wb") as file:
            np.savez(file, **dict(x.items()))  # type: ignore[arg-type]

    @contextmanager
    def until_the_end(self) -> Iterator[None]:
        """Writes how it ended. What went wrong on a node, such as a model that diverged, ends this run only and is
        kept; a mistake in the file is raised."""
        ended = "stopped"
        try:
            yield
            ended = "complete"
            self._checkpoint.unlink(missing_ok=True)
        except (NodeFailed, Deadlock) as error:
            ended, self.error = "failed", str(error)
        finally:
            self._put({"record": "end", "status": ended, **({"error": self.error} if self.error else {})})
            self._file.close()

    def values(self, metric: str) -> list[tuple[int, float]]:
        """Round and value of each measurement."""
        return [(round, value) for round, name, value in self.rows if name == metric]

    def _read(self) -> None:
        lines = lines_of(self._path)
        other = differs(lines, self._head)
        if other:
            raise ConfigError(f"--resume: {self._path} was run with another {other!r}; give another --out")
        rows = [(line["round"], line["metric"], line["value"]) for line in lines if line["record"] == "metric"]
        self.is_complete = lines[-1].get("status") == "complete"
        found = None if self.is_complete else self.saved()
        self.rows = [row for row in rows if self.is_complete or (found is not None and row[0] <= found[0])]

    def _begin(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("w", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--out {self._path}: cannot be written: {error.strerror}") from None
        self._put(self._head)
        for row in self.rows:
            self._put(self._line(row))

    def _line(self, row: Row) -> dict[str, Any]:
        round, metric, value = row
        return {
            "record": "metric",
            "arm": self.arm,
            "seed": self.seed,
            "round": round,
            "metric": metric,
            "value": value,
        }

    def _put(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def differs(lines: Sequence[Mapping[str, Any]], head: Mapping[str, Any], but: str = "") -> str | None:
    """The first field, other than `but`, in which a run's file is not of the run that `head` is of."""
    there, here = lines[0] if lines else {}, json.loads(json.dumps({"schema": SCHEMA, **head}))
    return next((key for key in _IDENTITY if key != but and there.get(key) != here.get(key)), None)


def digest(path: Path) -> str:
    """SHA-256 of the experiment file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def lines_of(path: Path) -> list[dict[str, Any]]:
    """All whole lines; the last may have been cut off when the run was killed."""
    found = []
    for text in path.read_text("utf-8").splitlines():
        try:
            found.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return found
