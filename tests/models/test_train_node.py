"""What a node of a fleet learns from: its own samples, or its part of the experiment's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tierline.core.config.sections import Learn
from tierline.core.errors import ConfigError, DataError
from tierline.core.types import NodeId
from tierline.learning.cast import worker_ids
from tierline.learning.experiment.file import Data, Setting, Train, WorldTable
from tierline.learning.fleet.seat import load_trainer
from tierline.models.data.load import load
from tierline.models.train.node import open_population

WORKERS = worker_ids(4)


def setting(data: str = "digits") -> Setting:
    model = {"name": "mlp", "hidden": [4]}
    return Setting(Data(data), model, Train(num_workers=4, rounds=1), {"name": "ring"}, WorldTable())


def num_samples(data: str, here: list[NodeId]) -> dict[NodeId, int]:
    population = open_population(data, setting(), 0, WORKERS, here)
    return {me: population.trainers[me].num_samples for me in here}


def test_a_node_learns_from_what_it_has_or_is_dealt() -> None:
    total = len(load("digits", 0).train.labels)
    first, second = WORKERS[:2]
    assert num_samples("", [first])[first] in (total // 4, total // 4 + 1)
    assert num_samples("digits", [first]) == {first: total}
    assert sum(num_samples("digits", [first, second]).values()) == total
    starts = [open_population(data, setting(), 0, WORKERS, [first]).start.flat for data in ("", "digits")]
    assert np.array_equal(*starts)


def test_a_peer_chooses_no_file_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "private").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"data\.name = 'private': no data set"):
        open_population("", setting("private"), 0, WORKERS, [WORKERS[0]])


def test_data_that_is_not_there_is_found_at_the_start(tmp_path: Path) -> None:
    for good in ("", "digits", str(tmp_path)):
        load_trainer(Learn("torch", good))
    with pytest.raises(DataError, match=r"learn\.data = 'digit': neither a data set nor .*nearest is \"digits\""):
        load_trainer(Learn("torch", "digit"))
    assert load_trainer(Learn()) is None
    with pytest.raises(ValueError, match="nothing computes on it"):
        Learn("", "digits")
