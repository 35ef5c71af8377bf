"""`tierline train FILE`: every arm with every seed, then the table and the verdicts."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from tierline.cli.experiment.judge import check_claims, judge, summary
from tierline.cli.experiment.processes import Processes, Request
from tierline.cli.experiment.record import Record, digest
from tierline.cli.experiment.scene import check, data_name, scene
from tierline.cli.experiment.simulate import simulate
from tierline.cli.output import Format, emit
from tierline.core.catalog import nearest
from tierline.core.errors import ConfigError
from tierline.learning.experiment.file import Arm, Experiment, Setting, read
from tierline.learning.experiment.scene import Row
from tierline.models.data.dataset import Dataset
from tierline.models.data.load import load

_EVERY_S = 5.0
"""Between two lines of progress of one run."""


def run_experiment(
    path: Path,
    out: Path,
    *,
    overrides: list[str],
    arms: list[str],
    resume: bool,
    form: Format,
    output: Path | None,
    on_processes: bool = False,
) -> None:
    """Train, write one metrics file per run into `out`, print the summary. Raises TierlineError."""
    experiment, settings = read(path, overrides)
    chosen = [arm for arm in experiment.arm if not arms or arm.id in arms]
    known = [arm.id for arm in experiment.arm]
    for arm_id in arms:
        if arm_id not in known:
            raise ConfigError(f"--arm {arm_id}: {path.name} has no such arm{nearest(arm_id, known)}")
    check_claims(experiment.expect, known)
    for arm in chosen:
        check(arm, settings[arm.id], path.parent)
    datasets: dict[tuple[str, int], Dataset] = {}
    runs: dict[str, list[Record]] = {}
    for arm in chosen:
        setting = settings[arm.id]
        for seed in setting.train.seeds:
            head = _head(experiment, arm, setting, seed, path, overrides, on_processes)
            record = Record(out / arm.id / f"seed-{seed}.jsonl", head, resume=resume)
            if not record.is_complete:
                name = data_name(setting, path.parent)
                if (name, seed) not in datasets:
                    datasets = {(name, seed): load(name, seed)}
                dataset, base = datasets[name, seed], path.parent
                keeper = _Aloud(record, f"{arm.id} seed {seed}", experiment.measure.metrics[0], setting.train.rounds)
                with record.until_the_end():
                    if on_processes:
                        folder = out / arm.id / f"seed-{seed}.nodes"
                        stage = scene(arm, setting, seed, dataset, base)
                        with Processes(
                            stage, Request(path, overrides, arm.id, seed), folder, resume=resume
                        ) as processes:
                            processes.measure(experiment.measure, keeper)
                        shutil.rmtree(folder)
                    else:
                        simulate(arm, setting, seed, experiment.measure, dataset, base, keeper)
                if record.error:
                    _say(f"{arm.id} seed {seed}: failed: {record.error}")
            runs.setdefault(arm.id, []).append(record)
    rows = summary(runs, experiment.measure)
    verdicts = judge(experiment.expect, runs, experiment.measure.target)
    if form is Format.TABLE and verdicts:
        emit(rows, form, output)
        print()
        emit(verdicts, form, None)
    else:
        emit(rows, form, output, {"experiment": experiment.name, "arms": rows, "expectations": verdicts})


class _Aloud:
    """Passes on to a Record, and says now and then how far a run has come."""

    def __init__(self, record: Record, run: str, metric: str, rounds: int) -> None:
        self._run, self._metric, self._rounds = run, metric, rounds
        self._record, self.save, self.saved = record, record.save, record.saved
        self._started = self._last = time.monotonic()

    def note(self, row: Row) -> None:
        self._record.note(row)
        round, metric, value = row
        now = time.monotonic()
        if metric == self._metric and (now - self._last > _EVERY_S or round == self._rounds):
            self._last = now
            _say(f"{self._run}: round {round}/{self._rounds}  {metric} {value:.4f}  {now - self._started:.0f} s")


def _head(
    experiment: Experiment, arm: Arm, setting: Setting, seed: int, path: Path, overrides: list[str], on_processes: bool
) -> dict[str, Any]:
    room, rule = arm.rule
    words = [*(["--on", "processes"] if on_processes else []), *(word for o in overrides for word in ("--set", o))]
    return {
        "experiment": experiment.name,
        "arm": arm.id,
        "seed": seed,
        "on": "processes" if on_processes else "simulate",
        room: rule,
        "setting": msgspec.to_builtins(setting),
        "command": shlex.join(["tierline", "train", str(path), *words]),
        "file_sha256": digest(path),
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
