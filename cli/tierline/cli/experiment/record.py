"""One long-form file of metrics per run: JSON lines, the first says what ran and with what, the last how it ended."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tierline.core.errors import ConfigError, TierlineError
from tierline.core.telemetry.environment import environment

SCHEMA = 1


class Record:
    """The file of one run, as it is being written; every line is there as soon as it is known."""

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--out {path}: cannot be written: {error.strerror}") from None
        self.arm, self.seed = head["arm"], head["seed"]
        self.rows: list[tuple[int, str, float]] = []
        self.error = ""
        self._put({"record": "run", "schema": SCHEMA, **head, "environment": environment()})

    def note(self, row: tuple[int, str, float]) -> None:
        self.rows.append(row)
        round, metric, value = row
        self._put(
            {"record": "metric", "arm": self.arm, "seed": self.seed, "round": round, "metric": metric, "value": value}
        )

    @contextmanager
    def until_the_end(self) -> Iterator[None]:
        """Writes how it ended; an error that tierline raises on purpose ends this run only, and is kept."""
        ended = "stopped"
        try:
            yield
            ended = "complete"
        except TierlineError as error:
            ended, self.error = "failed", str(error)
        finally:
            self._put({"record": "end", "status": ended, **({"error": self.error} if self.error else {})})
            self._file.close()

    def values(self, metric: str) -> list[tuple[int, float]]:
        """Round and value of each measurement."""
        return [(round, value) for round, name, value in self.rows if name == metric]

    def _put(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line, default=str) + "\n")
        self._file.flush()


def digest(path: Path) -> str:
    """SHA-256 of the experiment file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
