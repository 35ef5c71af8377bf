"""`tierline job` on folders of `tierline train --out`."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from tierline.cli.app import run_app
from tierline.core.errors import ConfigError, DataError, UsageError

EXPERIMENT = """
schema = 1
name   = "jobs"
data.name = "digits"
model  = { name = "mlp", hidden = [8] }
train  = { num_workers = 2, rounds = 2, num_steps = 2, batch_size = 10, seeds = [0, 1] }
measure.metrics = ["test_accuracy", "num_bytes"]

[[arm]]
id       = "fedavg"
strategy = { name = "fedavg" }

[[arm]]
id     = "gossip"
gossip = { name = "d_psgd" }
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "jobs.toml").write_text(EXPERIMENT)
    run_app(["train", str(folder / "jobs.toml"), "--out", str(folder / "runs"), "--output", str(folder / "table")])
    return str(folder / "runs")


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, object]]:
    capsys.readouterr()
    run_app(["job", *words, "--format", "json"])
    rows: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return rows


def test_runs_are_listed_and_compared(runs: str, capsys: pytest.CaptureFixture[str]) -> None:
    listed = shown(capsys, "ls", runs)
    assert [row["job"] for row in listed] == ["fedavg/seed-0", "fedavg/seed-1", "gossip/seed-0", "gossip/seed-1"]
    assert {(row["status"], row["round"], row["error"]) for row in listed} == {("complete", "2/2", "")}
    logged = shown(capsys, "log", "fedavg/seed-1", runs)
    assert [row["round"] for row in logged] == [0, 1, 2]
    (compared,) = shown(capsys, "compare", runs, "--job", "fedavg/seed-1")
    assert compared["test_accuracy"] == logged[-1]["test_accuracy"]
    assert len(shown(capsys, "compare", runs)) == 4


def test_measurements_models_and_pictures_are_exported(runs: str, tmp_path: Path) -> None:
    files = {name: tmp_path / f"it.{name}" for name in ("csv", "npz", "svg")}
    words = ["--job", "gossip/seed-0", "--csv", str(files["csv"]), "--model", str(files["npz"])]
    run_app(["job", "export", runs, *words, "--picture", str(files["svg"])])
    with files["csv"].open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["round"], row["metric"]) for row in rows][:2] == [("0", "test_accuracy"), ("0", "num_bytes")]
    assert len(rows) == 6
    with np.load(files["npz"]) as model:
        assert sorted({model[name].ndim for name in model.files}) == [1, 2]
    picture = ET.fromstring(files["svg"].read_text())
    names = {element.tag.rpartition("}")[2]: element for element in picture.iter()}
    (told,) = map(json.loads, (names["desc"].text or "").splitlines())
    assert (told["seed"], told["gossip"], told["setting"]["train"]["rounds"]) == (0, {"name": "d_psgd"}, 2)
    assert {"versions", "hardware"} <= told["environment"].keys() and "train" in told["command"]
    assert sum(element.tag.endswith("}circle") for element in picture.iter()) == 3 + 1  # its points, and the legend


def test_what_cannot_be_is_one_line(runs: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no job 'x'; there are: fedavg/seed-0"):
        run_app(["job", "log", "x", runs])
    with pytest.raises(UsageError, match="go on with `tierline train"):
        run_app(["job", "stop", "fedavg/seed-0", runs])
    with pytest.raises(UsageError, match="4 runs are meant; name one with --job"):
        run_app(["job", "export", runs, "--model", str(tmp_path / "m.npz")])
    with pytest.raises(DataError, match="no run has the metric 'loss'; there are: num_bytes, test_accuracy"):
        run_app(["job", "export", runs, "--picture", str(tmp_path / "p.svg"), "--metric", "loss"])
    with pytest.raises(ConfigError, match="no runs here"):
        run_app(["job", "ls", str(tmp_path)])
