"""Every gossip rule and strategy over gRPC between processes: the bytes and the figures that simulation gives."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from learning_host import DEADLINE_S, Host, borrow

from tierline.cli.experiment import processes as on_processes
from tierline.cli.experiment.processes import COORDINATOR, Processes, Request
from tierline.cli.experiment.scene import scene
from tierline.cli.experiment.simulate import simulate
from tierline.cli.supervisor import environment
from tierline.core import catalog
from tierline.learning.experiment.file import read
from tierline.models.data.load import load

EXPERIMENT = """
schema = 1
name   = "every-rule"

[data]
name = "digits"

[model]
name   = "mlp"
hidden = [6, 5]

[train]
num_workers = 3
rounds      = 3
num_steps   = 2
batch_size  = 4

[measure]
metrics = ["test_accuracy", "train_loss", "num_messages", "num_bytes"]
"""
LATE_S = 60.0
"""Rules that go on without the late wait for everyone here."""

OPTIONS: dict[str, dict[str, object]] = {
    "relay": {"momentum": 0.9},
    "local_sgd": {"every": 2},
    "choco": {"compressor": "qsgd", "momentum": 0.9, "nesterov": True},
    "deep_squeeze": {"compressor": "topk", "options": {"share": 0.3}},
    "krum": {"num_attackers": 0},
    "trimmed_mean": {"trim": 1},
    "fedbuff": {"buffer": 2},
    "fedavg": {"share": 0.6},
}
"""Some that add to what is sent or remembered; others run as they are by default."""

MORE: list[tuple[str, str, str, dict[str, object]]] = [
    ("d_psgd-late", "gossip", "d_psgd", {"form": "adapt", "within_s": LATE_S}),
    ("sgp-late", "gossip", "sgp", {"within_s": LATE_S}),
    ("relay-late", "gossip", "relay", {"fallback": "own", "within_s": LATE_S}),
    ("qg_dsgdm-adam", "gossip", "qg_dsgdm", {"form": "adam"}),
    ("ngm-sign", "gossip", "ngm", {"compressor": "sign"}),
    ("local_sgd-blocks", "gossip", "local_sgd", {"block": 2, "every": 1, "blocks_every": 2}),
    ("sync_sgd-feedback", "strategy", "sync_sgd", {"compress": "error_feedback"}),
    ("splitfed-2", "strategy", "splitfed", {"version": 2}),
]

# A DDNN's samples have several views, which experiment files do not take: see tests/models/test_tiers.py.
CASES = [
    *((name, room, name, OPTIONS.get(name, {})) for room in ("gossip", "strategy") for name in catalog.names(room)),
    *MORE,
]
CASES = [case for case in CASES if case[2] != "ddnn"]


@pytest.fixture(scope="module")
def hosts() -> Iterator[dict[str, Host]]:
    """A coordinator and two that hold the workers; they stay for all rules."""
    env = {**environment(), "GRPC_VERBOSITY": "NONE"}
    started = {name: Host(env) for name in (COORDINATOR, "host-0", "host-1")}
    for host in started.values():
        assert host.lines.get(timeout=DEADLINE_S) == {"event": "up"}
    yield started
    for host in started.values():
        host.close()


class Kept:
    """Keeps the rows of a run."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, str, float]] = []

    def note(self, row: tuple[int, str, float]) -> None:
        self.rows.append(row)

    def save(self, *_: object) -> None:
        pass

    def saved(self, *_: object) -> None:
        pass


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + " }"
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)


@pytest.mark.parametrize(("arm_id", "room", "name", "options"), CASES, ids=[case[0] for case in CASES])
def test_processes_give_what_simulation_gives(
    arm_id: str,
    room: str,
    name: str,
    options: dict[str, Any],
    hosts: dict[str, Host],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "every.toml"
    tree = 'topology.name = "chain"' if name == "relay" else ""
    path.write_text(f'{EXPERIMENT}\n[[arm]]\nid = "{arm_id}"\n{room} = {toml({"name": name, **options})}\n{tree}\n')
    experiment, settings = read(path, [])
    arm, setting, dataset = experiment.arm[0], settings[arm_id], load("digits", 0)
    simulated, measured = Kept(), Kept()
    rules = simulate(scene(arm, setting, 0, dataset, tmp_path), experiment.measure, simulated)
    stage = scene(arm, setting, 0, dataset, tmp_path)
    monkeypatch.setattr(on_processes, "Child", borrow(hosts))
    with Processes(stage, Request(path, [], arm_id, 0), tmp_path / "nodes", num_hosts=2) as processes:
        processes.measure(experiment.measure, measured)
        states = processes.states()
    if stage.is_asynchronous:  # whoever comes first is served first
        assert {row[0] for row in measured.rows if row[1] == "test_accuracy"} == {0, 1, 2, 3}
        assert all(math.isfinite(value) for _, _, value in measured.rows)
        return
    assert states.keys() == rules.keys()
    for me, rule in rules.items():
        expected = rule.state()
        assert states[me].keys() == expected.keys()
        for key, value in expected.items():
            assert np.asarray(states[me][key]).tobytes() == np.asarray(value).tobytes(), (me, key)
    assert measured.rows == simulated.rows
