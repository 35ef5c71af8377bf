"""`tierline train FILE`: every arm with every seed, then the table and the verdicts."""

from __future__ import annotations

import gc
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from tierline.cli.experiment.fleet import OnFleet
from tierline.cli.experiment.judge import check_claims, judge, summary
from tierline.cli.experiment.processes import Processes, Request
from tierline.cli.experiment.record import Record, digest
from tierline.cli.experiment.replay import Replay, read_replay, record_lines
from tierline.cli.experiment.scene import check, data_name, scene
from tierline.cli.experiment.search import Trial, Values, best, on_validation, short, trials
from tierline.cli.experiment.simulate import simulate
from tierline.cli.output import Format, emit
from tierline.core.arrays import Params
from tierline.core.catalog import nearest
from tierline.core.errors import ConfigError
from tierline.learning.experiment.file import Arm, Experiment, Setting, read
from tierline.learning.experiment.scene import Row, Scene
from tierline.learning.fleet.job import check_portable
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
    on: Literal["simulate", "processes", "fleet"] = "simulate",
    fleet: OnFleet | None = None,
    replay: Path | None = None,
) -> None:
    """Train, write one metrics file per run into `out`, print the summary. `fleet` is where jobs go, `replay` has runs
    on processes that are gone through again. Raises TierlineError."""
    experiment, settings = read(path, overrides)
    chosen = [arm for arm in experiment.arm if not arms or arm.id in arms]
    known = [arm.id for arm in experiment.arm]
    for arm_id in arms:
        if arm_id not in known:
            raise ConfigError(f"--arm {arm_id}: {path.name} has no such arm{nearest(arm_id, known)}")
    check_claims(experiment.expect, known)
    for arm in chosen:
        if fleet is None:
            check(arm, settings[arm.id], path.parent)
        else:
            check_portable(experiment, arm.id)
    open_values = {arm.id: trials(experiment, arm, settings[arm.id], path.parent) for arm in chosen}
    if on != "simulate" and any(open_values.values()):
        raise ConfigError('search: trials are simulated only; leave search out, or run with "--on simulate"')
    if fleet is not None:
        _check_free(out, chosen, settings, resume=resume)
        pairs = [(arm.id, seed) for arm in chosen for seed in settings[arm.id].train.seeds]
        for name, job in fleet.submit(experiment, pairs, resume=resume).items():
            _say(f"{name}: job {job} of {fleet.address}, which goes on without this command")
    data = _Data(path.parent)
    runs: dict[str, list[Record]] = {}
    found: dict[str, Values] = {}
    for arm in chosen:
        setting = settings[arm.id]
        if open_values[arm.id]:
            head = _head(experiment, arm, setting, 0, path, overrides, on, None)
            won = _search(experiment, open_values[arm.id], head, data, out / arm.id / "search", resume=resume)
            arm, setting, found[arm.id] = won.arm, won.setting, won.values
        for seed in setting.train.seeds:
            head = _head(experiment, arm, setting, seed, path, overrides, on, replay)
            file = f"{arm.id}/seed-{seed}.jsonl"
            again = read_replay(replay / file, head) if replay else None
            record = Record(out / file, head, resume=resume)
            if not record.is_complete:
                aloud = _Aloud(record, f"{arm.id} seed {seed}", experiment.measure.metrics[0], setting.train.rounds)
                with record.until_the_end():
                    if fleet is not None:
                        record.keep_model(fleet.follow(arm.id, seed, aloud, _say))
                    else:
                        dataset = data.of(setting, seed)
                        if on == "processes":
                            request = Request(path, overrides, arm.id, seed)
                            stage = scene(arm, setting, seed, dataset, path.parent)
                            _on_processes(stage, request, experiment, aloud, record, out, resume=resume)
                        else:
                            _simulated(
                                scene(arm, setting, seed, dataset, path.parent), experiment, aloud, record, again
                            )
                if record.error:
                    _say(f"{arm.id} seed {seed}: failed: {record.error}")
            runs.setdefault(arm.id, []).append(record)
    rows = [row | dict(found.get(row["arm"], {})) for row in summary(runs, experiment.measure)]
    verdicts = judge(experiment.expect, runs, experiment.measure.target)
    if form is Format.TABLE and verdicts:
        emit(rows, form, output)
        print()
        emit(verdicts, form, None)
    else:
        emit(rows, form, output, {"experiment": experiment.name, "arms": rows, "expectations": verdicts})


class _Data:
    """The data set of the last run; seeds draw their own validation splits."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self._kept: dict[tuple[str, int], Dataset] = {}

    def of(self, setting: Setting, seed: int) -> Dataset:
        gc.collect()  # drivers, rules and generators of an earlier run hold each other, and with them its samples
        name = data_name(setting, self.base)
        if (name, seed) not in self._kept:
            self._kept = {(name, seed): load(name, seed)}
        return self._kept[name, seed]


def _search(
    experiment: Experiment, tried: Sequence[Trial], head: dict[str, Any], data: _Data, out: Path, *, resume: bool
) -> Trial:
    """Run every trial that has not been run, and return the best."""
    assert experiment.search
    seed, records = experiment.search.seed, []
    for trial in tried:
        setting, measure = short(trial, experiment)
        room, rule = trial.arm.rule
        told = head | {"seed": seed, room: rule, "setting": msgspec.to_builtins(setting), "measured_on": "validation"}
        record = Record(out / f"{trial.name}.jsonl", told, resume=resume)
        if not record.is_complete:
            keeper = _Aloud(record, f"{trial.arm.id} search {trial.name}", "test_accuracy", setting.train.rounds)
            with record.until_the_end():
                dataset = on_validation(data.of(setting, seed))
                simulate(scene(trial.arm, setting, seed, dataset, data.base), measure, keeper)
        records.append((trial, record))
    return best(records)


def _on_processes(
    stage: Scene, request: Request, experiment: Experiment, keeper: _Aloud, record: Record, out: Path, *, resume: bool
) -> None:
    folder = out / request.arm / f"seed-{request.seed}.nodes"
    with Processes(stage, request, folder, resume=resume) as processes:
        processes.measure(experiment.measure, keeper)
        states, start = processes.states(), stage.population.start
        record.end_with(record_lines(processes.participants(), processes.models()))
    shutil.rmtree(folder)
    models = {
        me: Params(start.layout, np.asarray(s["x"]), buffers=start.buffers) for me, s in states.items() if "x" in s
    }
    record.keep_model(stage.model_of(models))


def _simulated(stage: Scene, experiment: Experiment, keeper: _Aloud, record: Record, again: Replay | None) -> None:
    rules = simulate(stage, experiment.measure, keeper, again.participants if again else None)
    if again:
        again.check(rules)
        _say(f"{record.arm} seed {record.seed}: ends with the models of {again.path}")
    record.keep_model(stage.model_of({me: r.x for me, r in rules.items() if "x" in r.state()}))


def _check_free(out: Path, arms: Sequence[Arm], settings: Mapping[str, Setting], *, resume: bool) -> None:
    """Before anything is submitted: `out` takes these runs."""
    for arm in arms:
        for seed in settings[arm.id].train.seeds:
            path = out / arm.id / f"seed-{seed}.jsonl"
            if path.exists() and not resume:
                raise ConfigError(f"--out: {path} holds a run already; add --resume, or give another folder")


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
    experiment: Experiment,
    arm: Arm,
    setting: Setting,
    seed: int,
    path: Path,
    overrides: list[str],
    on: str,
    replay: Path | None,
) -> dict[str, Any]:
    room, rule = arm.rule
    where = ["--replay", str(replay)] if replay else [] if on == "simulate" else ["--on", on]
    words = [*where, *(word for o in overrides for word in ("--set", o))]
    return {
        "experiment": experiment.name,
        "arm": arm.id,
        "seed": seed,
        "on": "replay" if replay else on,
        room: rule,
        "setting": msgspec.to_builtins(setting),
        "command": shlex.join(["tierline", "train", str(path), *words]),
        "file_sha256": digest(path),
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
