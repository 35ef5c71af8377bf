"""What an arm leaves open, such as its learning rate: every value is tried on a seed of its own before the arm runs.

Values are compared on the validation split, so that the test split has no part in the choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import msgspec

from tierline.cli.experiment.record import Record
from tierline.cli.experiment.scene import check
from tierline.core import config
from tierline.core.errors import ConfigError
from tierline.learning.experiment.file import Arm, Experiment, Measure, Setting
from tierline.models.data.dataset import Dataset

Values = Mapping[str, Any]
"""By key, such as `train.optimizer.lr` or `gossip.gamma`."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """One arm with some values, and how well it did on the validation split."""

    values: Values
    arm: Arm
    setting: Setting

    @property
    def name(self) -> str:
        return ",".join(f"{key}={value}" for key, value in self.values.items())


def trials(experiment: Experiment, arm: Arm, setting: Setting, base: Path) -> list[Trial]:
    """All combinations of the values that are open; none where nothing is. Raises ConfigError for what can be known to
    be wrong before any data is read."""
    search = experiment.search
    open_values = arm.search if arm.search is not None else search.values if search else {}
    if not open_values:
        return []
    where = f"arm {arm.id!r}: search"
    if search is None:
        raise ConfigError(f"{where}: write a table [search] with the seed of the search")
    if search.seed in setting.train.seeds:
        raise ConfigError(f"{where}: seed {search.seed} is one of train.seeds; choose another")
    if setting.data.train_on != "train":
        raise ConfigError(f'{where}: compares values on the validation split; data.train_on must be "train"')
    made = []
    for chosen in product(*open_values.values()):
        trial = _with(arm, setting, dict(zip(open_values, chosen, strict=True)), where)
        check(trial.arm, trial.setting, base)
        made.append(trial)
    return made


def short(trial: Trial, experiment: Experiment) -> tuple[Setting, Measure]:
    """What a trial runs with, and that it is measured at its end."""
    assert experiment.search
    train = trial.setting.train
    rounds = experiment.search.rounds or train.rounds
    setting = msgspec.structs.replace(trial.setting, train=msgspec.structs.replace(train, rounds=rounds))
    return setting, Measure(every=rounds, metrics=["test_accuracy", "test_loss"])


def on_validation(dataset: Dataset) -> Dataset:
    """The same samples to learn from, and those of the validation split to be measured on."""
    return dataclasses.replace(dataset, test=dataset.validation)


def best(tried: Sequence[tuple[Trial, Record]]) -> Trial:
    """Of the highest accuracy, and the first of equals. Raises ConfigError where all have failed."""
    reached = [(record.values("test_accuracy")[-1][1], trial) for trial, record in tried if not record.error]
    if not reached:
        trial, record = tried[0]
        raise ConfigError(f"arm {trial.arm.id!r}: search: every value failed; {trial.name}: {record.error}")
    return max(reached, key=lambda found: found[0])[1]


def _with(arm: Arm, setting: Setting, values: Values, where: str) -> Trial:
    room, rule = arm.rule
    tables = {**msgspec.to_builtins(setting), room: dict(rule)}
    for key, value in values.items():
        *path, last = key.split(".")
        table = tables
        for part in path:
            table = table.setdefault(part, {}) if isinstance(table, dict) else table
        if not path or not isinstance(table, dict):
            raise ConfigError(f"{where}: no key {key!r}; write one of this arm, such as train.optimizer.lr")
        table[last] = value
    arm = msgspec.structs.replace(arm, **{room: tables.pop(room)})
    return Trial(values, arm, config.convert(tables, Setting, where))
