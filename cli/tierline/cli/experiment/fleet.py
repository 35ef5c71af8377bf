"""An experiment on a running fleet: every run is a job of its root, followed from here."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tierline.cli.identity import identity
from tierline.core.arrays import Params
from tierline.core.errors import ConfigError, LinkUnavailable, NodeFailed
from tierline.core.link.jobs import JobAsker
from tierline.learning.experiment.file import Experiment

_LOOK_S = 0.5
_JOBS = "jobs.json"


class OnFleet:
    """The jobs of one experiment at one root; which they are stands in `out/jobs.json`."""

    def __init__(self, address: str, state_dir: Path | None, out: Path) -> None:
        self.address = address
        self._tls = identity(state_dir)
        self._path = out / _JOBS
        self._jobs: dict[str, int] = {}

    def submit(self, experiment: Experiment, runs: Iterable[tuple[str, int]], *, resume: bool) -> dict[str, int]:
        """Queue every run that is not queued yet: the new ones, by name. With `resume`, what `jobs.json` names goes on.
        Raises what the root answers."""
        if resume and self._path.exists():
            kept = json.loads(self._path.read_text("utf-8"))
            if (other := kept.get("address")) != self.address:
                raise ConfigError(
                    f"--resume: {self._path} has jobs of {other}, not of {self.address}; give another --out"
                )
            self._jobs = kept["jobs"]
        return asyncio.run(self._submit(experiment, runs))

    async def _submit(self, experiment: Experiment, runs: Iterable[tuple[str, int]]) -> dict[str, int]:
        added = {}
        async with JobAsker(self.address, self._tls) as root:
            for arm, seed in runs:
                if (name := f"{arm} seed {seed}") not in self._jobs:
                    request = {"experiment": msgspec.to_builtins(experiment), "arm": arm, "seed": seed}
                    self._jobs[name] = added[name] = (await root.submit(request))["job"]
                    self._path.parent.mkdir(parents=True, exist_ok=True)
                    self._path.write_text(json.dumps({"address": self.address, "jobs": self._jobs}), "utf-8")
        return added

    def follow(self, arm: str, seed: int, keeper: Any, lost: Callable[[str], None]) -> Params:
        """Note every measurement until the job is complete: the final model. `lost` is told when the root cannot be
        reached. Raises NodeFailed where the job ends otherwise."""
        return asyncio.run(self._follow(self._jobs[f"{arm} seed {seed}"], keeper, lost))

    async def _follow(self, job: int, keeper: Any, lost: Callable[[str], None]) -> Params:
        told, num_rows = "", 0
        async with JobAsker(self.address, self._tls) as root:
            while True:
                try:
                    state = next(row for row in await root.jobs() if row["job"] == job)
                    rows = await root.log(job, num_rows)
                except LinkUnavailable as error:
                    if told != (told := str(error)):
                        lost(told)
                    await asyncio.sleep(_LOOK_S)
                    continue
                except StopIteration:
                    raise NodeFailed(f"{self.address} has no job {job} any more") from None
                told, num_rows = "", num_rows + len(rows)
                for row in rows:
                    keeper.note((row["round"], row["metric"], row["value"]))
                if state["status"] == "complete":
                    with contextlib.closing(np.load(io.BytesIO(await root.model(job)))) as found:
                        return Params.from_arrays({name: found[name] for name in found.files})
                if state["status"] in ("failed", "stopped"):
                    raise NodeFailed(f"job {job} {state['status']}{state['error'] and ': ' + state['error']}")
                await asyncio.sleep(_LOOK_S)
