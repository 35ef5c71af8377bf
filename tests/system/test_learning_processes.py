"""Learning between real processes gives the bytes that simulation gives, also where some are killed on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest

from tierline.cli.experiment.processes import COORDINATOR, Processes, Request
from tierline.cli.experiment.scene import scene
from tierline.cli.experiment.simulate import simulate
from tierline.core.types import NodeId
from tierline.learning.experiment.file import Arm, Experiment, Setting, read
from tierline.learning.experiment.scene import Row
from tierline.learning.rule import State
from tierline.models.data.load import load

EXPERIMENT = """
schema = 1
name   = "processes"

[data]
name = "digits"

[model]
name   = "mlp"
hidden = [16]

[train]
num_workers = 3
rounds      = 3
epochs      = EPOCHS
batch_size  = 10
optimizer   = { lr = 0.1 }

[measure]
metrics = ["test_accuracy", "train_loss", "num_messages", "num_bytes"]

[[arm]]
id       = "fedavg"
strategy = { name = "fedavg" }

[[arm]]
id       = "scaffold"
strategy = { name = "scaffold" }

[[arm]]
id     = "d_psgd"
gossip = { name = "d_psgd" }
"""


class Keeper:
    """Keeps rows, and the states that a simulation saves; `on_row` may disturb."""

    def __init__(self, on_row: Callable[[Row], None] = lambda row: None) -> None:
        self.rows: list[Row] = []
        self.on_row = on_row

    def note(self, row: Row) -> None:
        self.rows.append(row)
        self.on_row(row)

    def save(self, round: int, states: Mapping[NodeId, State], so_far: Mapping[str, float]) -> None:
        pass

    def saved(self, nodes: Iterable[NodeId]) -> None:
        pass


def arm_of(
    folder: Path, arm: str, *, rounds: int = 3, epochs: int = 1
) -> tuple[Path, list[str], Experiment, Arm, Setting]:
    path = folder / "processes.toml"
    path.write_text(EXPERIMENT.replace("EPOCHS", str(epochs)))
    overrides = [f"train.rounds={rounds}"]
    experiment, settings = read(path, overrides)
    return path, overrides, experiment, next(a for a in experiment.arm if a.id == arm), settings[arm]


def run_both(
    folder: Path, name: str, kills: Mapping[int, str] | None = None, *, num_hosts: int, rounds: int = 3, epochs: int = 1
) -> list[str]:
    """Compare an arm in simulation and on processes; those named in `kills` are killed once the round is measured.
    Returns who was killed in the middle of the run."""
    path, overrides, experiment, arm, setting = arm_of(folder, name, rounds=rounds, epochs=epochs)
    dataset = load("digits", 0)
    simulated = Keeper()
    rules = simulate(scene(arm, setting, 0, dataset, folder), experiment.measure, simulated)
    stage = scene(arm, setting, 0, dataset, folder)
    killed = []

    def disturb(row: Row) -> None:
        victim = (kills or {}).get(row[0])
        if row[1] == "test_accuracy" and victim:
            processes.kill(victim)
            if min(processes.rounds().values()) < rounds:
                killed.append(victim)

    with Processes(stage, Request(path, overrides, name, 0), folder / "nodes", num_hosts=num_hosts) as processes:
        measured = Keeper(disturb)
        processes.measure(experiment.measure, measured)
        states = processes.states()
    assert states.keys() == rules.keys()
    for me, rule in rules.items():
        for key, value in rule.state().items():
            assert np.asarray(states[me][key]).tobytes() == np.asarray(value).tobytes(), (me, key)
    assert measured.rows == simulated.rows
    return killed


@pytest.mark.parametrize("arm", ["d_psgd", pytest.param("scaffold", marks=pytest.mark.slow)])
def test_processes_give_the_bytes_of_simulation(arm: str, tmp_path: Path) -> None:
    run_both(tmp_path, arm, num_hosts=1)


def test_a_killed_host_and_a_killed_coordinator_change_nothing(tmp_path: Path) -> None:
    kills = {1: "host-0", 2: COORDINATOR}
    assert run_both(tmp_path, "fedavg", kills, num_hosts=2, rounds=5, epochs=8) == ["host-0", COORDINATOR]


@pytest.mark.slow
def test_ten_kills_in_thirty_rounds(tmp_path: Path) -> None:
    draw = np.random.default_rng(11)
    rounds = sorted(draw.choice(np.arange(1, 28), size=10, replace=False).tolist())
    victims = draw.choice([COORDINATOR, "host-0", "host-1"], size=10)
    # A host that has caught up several rounds by the time they are measured may be killed after the end.
    killed = run_both(
        tmp_path, "fedavg", dict(zip(rounds, victims.tolist(), strict=True)), num_hosts=2, rounds=30, epochs=8
    )
    assert len(killed) >= 8
