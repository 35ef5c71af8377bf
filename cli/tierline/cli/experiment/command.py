"""`tierline train FILE`: every arm with every seed, then the table and the verdicts."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from tierline.cli.experiment.file import Arm, Experiment, Setting, read
from tierline.cli.experiment.judge import check_claims, judge, summary
from tierline.cli.experiment.record import Record, Row, digest
from tierline.cli.experiment.scene import check
from tierline.cli.experiment.simulate import simulate
from tierline.cli.output import Format, emit
from tierline.core.catalog import nearest
from tierline.core.errors import ConfigError
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
            head = _head(experiment, arm, setting, seed, path, overrides)
            record = Record(out / arm.id / f"seed-{seed}.jsonl", head, resume=resume)
            if not record.is_complete:
                name = _located_data(setting.data.name, path.parent)
                if (name, seed) not in datasets:
                    datasets = {(name, seed): load(name, seed)}
                _run_one(arm, setting, seed, experiment, datasets[name, seed], path.parent, record)
            runs.setdefault(arm.id, []).append(record)
    rows = summary(runs, experiment.measure)
    verdicts = judge(experiment.expect, runs, experiment.measure.target)
    if form is Format.TABLE and verdicts:
        emit(rows, form, output)
        print()
        emit(verdicts, form, None)
    else:
        emit(rows, form, output, {"experiment": experiment.name, "arms": rows, "expectations": verdicts})


def _run_one(
    arm: Arm, setting: Setting, seed: int, experiment: Experiment, dataset: Dataset, base: Path, record: Record
) -> None:
    with record.until_the_end():
        keeper = _Aloud(record, f"{arm.id} seed {seed}", experiment.measure.metrics[0], setting.train.rounds)
        simulate(arm, setting, seed, experiment.measure, dataset, base, keeper)
    if record.error:
        _say(f"{arm.id} seed {seed}: failed: {record.error}")


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
    experiment: Experiment, arm: Arm, setting: Setting, seed: int, path: Path, overrides: list[str]
) -> dict[str, Any]:
    room, rule = arm.rule
    return {
        "experiment": experiment.name,
        "arm": arm.id,
        "seed": seed,
        "on": "simulate",
        room: rule,
        "setting": msgspec.to_builtins(setting),
        "command": shlex.join(["tierline", "train", str(path), *(word for o in overrides for word in ("--set", o))]),
        "file_sha256": digest(path),
    }


def _located_data(name: str, base: Path) -> str:
    """A data set's name, or a path meant from the experiment's folder."""
    beside = base / name
    return str(beside) if beside.exists() else name


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
