"""An arm with a seed on a data set of this machine."""

from __future__ import annotations

from pathlib import Path

from tierline.core import catalog
from tierline.learning.experiment.file import Arm, Setting, located
from tierline.learning.experiment.scene import Scene, check_rules, compose
from tierline.models.data.dataset import Dataset
from tierline.models.train.population import Population


def check(arm: Arm, setting: Setting, base: Path) -> None:
    """Raise ConfigError for what can be known to be wrong before any data is read."""
    check_rules(arm, setting, base)
    partition = dict(located(setting.data.partition, base))
    catalog.make("partition", partition.pop("name"), **partition)
    catalog.load("model", located(setting.model, base)["name"])


def data_name(setting: Setting, base: Path) -> str:
    """A data set's name, or a path meant from the experiment's folder."""
    beside = base / setting.data.name
    return str(beside) if beside.exists() else setting.data.name


def scene(arm: Arm, setting: Setting, seed: int, dataset: Dataset, base: Path) -> Scene:
    """Raises TierlineError; `base` is where the experiment's own files lie."""
    return compose(
        arm,
        setting,
        seed,
        base,
        lambda workers: Population(
            dataset,
            workers,
            partition=located(setting.data.partition, base),
            model=located(setting.model, base),
            seed=seed,
            with_validation=setting.data.train_on == "train+validation",
        ),
    )
