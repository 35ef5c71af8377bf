"""Runs of experiments, wherever they lie: jobs at the root of a fleet, or folders that `tierline train --out` wrote."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tierline.cli.experiment.record import MODEL, lines_of
from tierline.cli.identity import identity
from tierline.core.errors import ConfigError, DataError, UsageError
from tierline.core.link.jobs import JobAsker
from tierline.core.link.tls import TlsFiles
from tierline.learning.experiment.scene import Row

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """One run and what was measured so far."""

    name: str
    head: Mapping[str, Any]
    """`experiment`, `arm`, `seed`, `setting`, and what else is known of where it comes from."""
    status: str
    error: str
    rows: list[Row]

    @property
    def rounds(self) -> int:
        return int(self.head["setting"]["train"]["rounds"])

    @property
    def round(self) -> int:
        return self.rows[-1][0] if self.rows else 0

    def last(self) -> dict[str, float]:
        """Each metric's newest value."""
        return {metric: value for _, metric, value in self.rows}


class Place(Protocol):
    """Raises DataError for a run that is not there."""

    def runs(self) -> list[Run]: ...

    def model(self, run: Run, round: int) -> bytes:
        """A model as .npz; 0: the newest kept."""
        ...

    def change(self, name: str, verb: str) -> None:
        """`stop` or `resume`."""
        ...


def place_of(where: str, state_dir: Path | None) -> Place:
    """A folder if there is one of this name, else a root's address."""
    if Path(where).is_dir():
        return Folder(Path(where))
    return Root(where, identity(state_dir))


def find(runs: list[Run], name: str) -> Run:
    for run in runs:
        if run.name == name:
            return run
    raise DataError(f"no job {name!r}; there are: {', '.join(run.name for run in runs) or 'none'}")


class Folder:
    """Runs are named `ARM/seed-N`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def runs(self) -> list[Run]:
        paths = sorted(self._folder.glob("*/seed-*.jsonl"))
        if not paths:
            raise ConfigError(
                f"{self._folder}: no runs here; give the --out of `tierline train`, or host:port of a root"
            )
        return [self._read(path) for path in paths]

    def _read(self, path: Path) -> Run:
        found = lines_of(path)
        if not found or found[0].get("record") != "run":
            raise DataError(f"{path}: not the metrics file of a run")
        last = found[-1]
        ended = last if last.get("record") == "end" else {"status": "running or killed"}
        rows = [(line["round"], line["metric"], line["value"]) for line in found if line["record"] == "metric"]
        return Run(f"{path.parent.name}/{path.stem}", found[0], ended["status"], ended.get("error", ""), rows)

    def model(self, run: Run, round: int) -> bytes:
        path = self._folder / f"{run.name}{MODEL}"
        if round not in (0, run.round) or not path.exists():
            raise DataError(f"{path}: no such model: of a local run the final one is kept, once it is complete")
        return path.read_bytes()

    def change(self, name: str, verb: str) -> None:
        raise UsageError(
            f"{self._folder}: runs of this machine are stopped by Ctrl-C, and go on with `tierline train ... --resume`"
        )


class Root:
    """Runs are named by their number."""

    def __init__(self, address: str, tls: TlsFiles | None) -> None:
        self._address, self._tls = address, tls

    def runs(self) -> list[Run]:
        async def ask(root: JobAsker) -> list[Run]:
            found = []
            for row in await root.jobs():
                rows = [(r["round"], r["metric"], r["value"]) for r in await root.log(row["job"])]
                found.append(Run(str(row["job"]), row, row["status"], row["error"], rows))
            return found

        return self._ask(ask)

    def model(self, run: Run, round: int) -> bytes:
        return self._ask(lambda root: root.model(int(run.name), round))

    def change(self, name: str, verb: str) -> None:
        find(self.runs(), name)
        self._ask(lambda root: root.change(int(name), verb))

    def _ask(self, what: Callable[[JobAsker], Coroutine[Any, Any, T]]) -> T:
        async def call() -> T:
            async with JobAsker(self._address, self._tls) as root:
                return await what(root)

        return asyncio.run(call())


def provenance(run: Run) -> str:
    """Where a run comes from, as JSON: everything known but its measurements."""
    left_out = ("record", "metrics", "round", "rounds", "status", "error")
    return json.dumps({key: value for key, value in run.head.items() if key not in left_out}, sort_keys=True)
