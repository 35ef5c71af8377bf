"""Who took part in a run of processes killed at random moments, gone by in simulation, gives the same model."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tierline.cli.experiment import command
from tierline.cli.experiment.processes import COORDINATOR, Processes
from tierline.cli.main import main
from tierline.learning.cast import SERVER
from tierline.learning.driver.journal import JournalReader

EXPERIMENT = """
schema = 1
name   = "killed"

[data]
name = "digits"

[model]
name   = "mlp"
hidden = [16]

[train]
num_workers = 4
rounds      = ROUNDS
batch_size  = 10
epochs      = 4
optimizer   = { lr = 0.1 }

[measure]
metrics = ["test_accuracy"]

[[arm]]
id       = "fedavg"
strategy = { name = "fedavg", quorum = 2 }

[[arm]]
id       = "median"
strategy = { name = "median", quorum = 3, within_s = 0.02 }
"""


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The command takes signals over; here it runs in the process of the tests."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Killer:
    """Kills `num` times: each time the server has come some rounds further, and then at a random moment."""

    def __init__(self, seed: int, num: int, rounds: int) -> None:
        draw = np.random.default_rng(seed)
        victims = draw.permutation(np.resize([COORDINATOR, "host-0", "host-1"], num)).tolist()
        after = np.sort(draw.choice(rounds - 1, num, replace=False)).tolist()
        self.plan = list(zip(after, victims, draw.uniform(0.0, 0.1, num).tolist(), strict=True))
        self.killed: list[str] = []
        self.over = threading.Event()

    def run(self, processes: Processes) -> None:
        reader = JournalReader(processes.folder / f"{COORDINATOR}.sqlite")
        for round, victim, delay_s in self.plan:
            while reader.rounds().get(SERVER, 0) < round:
                if self.over.wait(0.002):
                    return
            if self.over.wait(delay_s):
                return
            processes.kill(victim)
            self.killed.append(victim)


def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arm: str, *, rounds: int, kills: int) -> list[str]:
    """On processes, with kills, then the replay; returns who was killed while it ran."""
    path = tmp_path / "killed.toml"
    path.write_text(EXPERIMENT.replace("ROUNDS", str(rounds)))
    killer = Killer(5, kills, rounds)

    class Killed(Processes):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options, num_hosts=2)

        def measure(self, *args: Any) -> None:
            thread = threading.Thread(target=killer.run, args=(self,))
            thread.start()
            try:
                super().measure(*args)
            finally:
                killer.over.set()
                thread.join()

    monkeypatch.setattr(command, "Processes", Killed)
    common = ["train", str(path), "--arm", arm, "--format", "json"]
    assert main([*common, "--out", str(tmp_path / "runs"), "--on", "processes"]) == 0
    assert main([*common, "--out", str(tmp_path / "again"), "--replay", str(tmp_path / "runs")]) == 0
    return killer.killed


def lines(folder: Path, arm: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / arm / "seed-0.jsonl").read_text().splitlines()]


def check(tmp_path: Path, arm: str, rounds: int, capsys: pytest.CaptureFixture[str]) -> None:
    then, now = lines(tmp_path / "runs", arm), lines(tmp_path / "again", arm)
    assert now[0]["on"] == "replay" and f"{arm} seed 0: ends with the models of" in capsys.readouterr().err
    metrics = [line for line in then if line["record"] == "metric"]
    assert [line for line in now if line["record"] == "metric"] == metrics and len(metrics) == rounds + 1
    (model,) = [line for line in then if line["record"] == "model"]
    heard = [line for line in then if line["record"] == "heard"]
    assert model["node"] == SERVER and {line["round"] for line in heard} == set(range(rounds))
    assert any(len(line["members"]) < 4 for line in heard)


def test_a_quorum_of_killed_processes_is_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, monkeypatch, "fedavg", rounds=5, kills=2)
    check(tmp_path, "fedavg", 5, capsys)
    # Another file of who took part gives another model, and that is told.
    run = tmp_path / "runs" / "fedavg" / "seed-0.jsonl"
    told = [json.loads(line) for line in run.read_text().splitlines()]
    last = max(line["round"] for line in told if line["record"] == "heard")
    for line in told:
        if line["record"] == "heard" and line["round"] == last:
            line["members"] = ["worker-0"] if line["members"] != ["worker-0"] else ["worker-1"]
    run.write_text("".join(json.dumps(line) + "\n" for line in told))
    common = ["train", str(tmp_path / "killed.toml"), "--arm", "fedavg", "--replay", str(tmp_path / "runs")]
    assert main([*common, "--out", str(tmp_path / "other")]) == 3
    assert "replayed, server ends with the model" in capsys.readouterr().err
    assert main([*common, "--out", str(tmp_path / "third"), "--set", "train.rounds=4"]) == 2
    assert "was run with another 'setting'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["fedavg", "median"])
def test_ten_kills_at_random_moments_in_thirty_rounds_are_replayed(
    arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    killed = train(tmp_path, monkeypatch, arm, rounds=30, kills=10)
    check(tmp_path, arm, 30, capsys)
    assert len(killed) == 10
