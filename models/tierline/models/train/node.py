"""What a node of a fleet learns with, in torch. Imported where `[learn] trainer = "torch"` asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tierline.core.catalog import nearest
from tierline.core.errors import ConfigError, DataError
from tierline.core.types import NodeId
from tierline.learning.experiment.file import Setting
from tierline.models.data.load import NAMES, load
from tierline.models.train.population import Population


def check_data(data: str) -> None:
    """Raise DataError for a configuration that names no data set; nothing is read."""
    if data and data not in NAMES and not Path(data).exists():
        raise DataError(f"learn.data = {data!r}: neither a data set nor an existing path{nearest(data, NAMES)}")


def open_population(
    data: str, setting: Setting, seed: int, workers: Sequence[NodeId], here: Sequence[NodeId]
) -> Population:
    """`data` names what this node has, a data set or a path: all its training samples are dealt to the workers that
    compute here. Where it is empty they get what the experiment's partition deals them of the experiment's data set.
    The test split is that of whichever is read. Raises DataError, ConfigError."""
    if not data and setting.data.name not in NAMES:  # which a peer says: it does not choose files of this machine
        raise ConfigError(f"data.name = {setting.data.name!r}: no data set{nearest(setting.data.name, NAMES)}")
    is_own = bool(data and here)
    return Population(
        load(data or setting.data.name, seed),
        here if is_own else workers,
        partition={"name": "iid"} if is_own else setting.data.partition,
        model=setting.model,
        seed=seed,
        with_validation=setting.data.train_on == "train+validation",
    )
