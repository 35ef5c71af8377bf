"""`tierline train FILE`: every arm with every seed, then the table and the verdicts."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from tierline.cli.experiment.file import Arm, Experiment, Setting, read
from tierline.cli.experiment.judge import check_claims, judge, summary
from tierline.cli.experiment.record import Record, digest
from tierline.cli.experiment.simulate import simulate
from tierline.cli.output import Format, emit
from tierline.core.catalog import nearest
from tierline.core.errors import ConfigError
from tierline.models.data.dataset import Dataset
from tierline.models.data.load import load

_EVERY_S = 5.0
"""Between two lines of progress of one run."""


def run_experiment(
    path: Path, out: Path, *, overrides: list[str], arms: list[str], form: Format, output: Path | None
) -> None:
    """Train, write one metrics file per run into `out`, print the summary. Raises TierlineError."""
    experiment, settings = read(path, overrides)
    chosen = [arm for arm in experiment.arm if not arms or arm.id in arms]
    known = [arm.id for arm in experiment.arm]
    for arm_id in arms:
        if arm_id not in known:
            raise ConfigError(f"--arm {arm_id}: {path.name} has no such arm{nearest(arm_id, known)}")
    check_claims(experiment.expect, known)
    datasets: dict[tuple[str, int], Dataset] = {}
    runs: dict[str, list[Record]] = {}
    for arm in chosen:
        setting = settings[arm.id]
        for seed in setting.train.seeds:
            name = _located_data(setting.data.name, path.parent)
            if (name, seed) not in datasets:
                datasets = {(name, seed): load(name, seed)}
            record = Record(out / arm.id / f"seed-{seed}.jsonl", _head(experiment, arm, setting, seed, path, overrides))
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
    started = last = time.monotonic()

    def note(row: tuple[int, str, float]) -> None:
        nonlocal last
        record.note(row)
        now = time.monotonic()
        if row[1] == experiment.measure.metrics[0] and (now - last > _EVERY_S or row[0] == setting.train.rounds):
            last = now
            _say(
                f"{arm.id} seed {seed}: round {row[0]}/{setting.train.rounds}  {row[1]} {row[2]:.4f}  {now - started:.0f} s"
            )

    with record.until_the_end():
        simulate(arm, setting, seed, experiment.measure, dataset, base, note)
    if record.error:
        _say(f"{arm.id} seed {seed}: failed: {record.error}")


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
        "command": " ".join(["tierline", "train", path.name, *(f"--set {o}" for o in overrides)]),
        "file_sha256": digest(path),
    }


def _located_data(name: str, base: Path) -> str:
    """A data set's name, or a path meant from the experiment's folder."""
    beside = base / name
    return str(beside) if beside.exists() else name


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
