"""Experiment files, from TOML to verdicts; trainings here take well under a second."""

from __future__ import annotations

import json
import re
import signal
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tierline.cli.experiment import command, simulate
from tierline.cli.experiment.judge import check_claims, judge, summary
from tierline.cli.experiment.record import Record
from tierline.cli.experiment.scene import check
from tierline.cli.experiment.search import trials
from tierline.cli.main import main
from tierline.core.errors import ConfigError, NodeFailed
from tierline.learning.experiment.file import Expectation, Measure, read

ROOT = Path(__file__).parents[2]

EXPERIMENT = """
schema = 1
name   = "tiny"

[data]
name      = "digits"
partition = { name = "shards", per_worker = 2 }

[model]
name   = "mlp"
hidden = []

[train]
num_workers = 5
rounds      = 4
batch_size  = 128
optimizer   = { lr = 0.2 }

[measure]
metrics = ["test_accuracy", "train_loss", "consensus_distance", "test_accuracy_worker_mean", "num_bytes"]
target  = 0.3

[[arm]]
id       = "avg"
strategy = { name = "fedavg", share = 0.6 }

[[arm]]
id       = "all"
strategy = { name = "dynamic_averaging", delta = 0.0 }
data.partition = { name = "iid" }
train.optimizer.momentum = 0.5

[[arm]]
id     = "ring"
gossip = { name = "d_psgd" }
train.rounds = 6

[[expect]]
claim  = "all > avg"
source = "somebody"

[[expect]]
claim  = "ring >= 2"
metric = "best_test_accuracy"

[[expect]]
claim          = "ring > avg"
not_comparable = "other data"
"""


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The command takes signals over; here it runs in the process of the tests."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(EXPERIMENT)
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def train(file: Path, out: Path, *more: str) -> int:
    return main(["train", str(file), "--out", str(out), "--format", "json", *more])


def test_from_a_file_to_measurements_and_verdicts(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(file, tmp_path / "runs") == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["arm"] for row in document["arms"]] == ["avg", "all", "ring"]
    verdicts = [row["verdict"] for row in document["expectations"]]
    assert verdicts == ["held", "not held", "not comparable: other data"]
    head, *metrics, end = lines(tmp_path / "runs" / "all" / "seed-0.jsonl")
    assert head["setting"]["data"]["partition"] == {"name": "iid"}
    assert head["setting"]["train"]["optimizer"] == {
        "name": "sgd", "lr": 0.2, "lr_decay": 1.0, "momentum": 0.5, "weight_decay": 0.0
    }  # fmt: skip
    assert head["environment"]["versions"]["numpy"] == np.__version__ and len(head["file_sha256"]) == 64
    assert head["command"] == f"tierline train {file}"
    assert end == {"record": "end", "status": "complete"}
    by_metric = {name: [row for row in metrics if row["metric"] == name] for name in ("test_accuracy", "train_loss")}
    assert [row["round"] for row in by_metric["test_accuracy"]] == [0, 1, 2, 3, 4]
    assert [row["round"] for row in by_metric["train_loss"]] == [1, 2, 3, 4]
    accuracy = [row["value"] for row in by_metric["test_accuracy"]]
    assert accuracy[0] < 0.3 and accuracy[-1] > 0.5
    ring = {row["metric"]: row["value"] for row in lines(tmp_path / "runs" / "ring" / "seed-0.jsonl")[1:-1]}
    assert ring["consensus_distance"] > 0 and ring["num_bytes"] == 6 * 5 * 2 * 650 * 4


def test_the_same_file_gives_the_same_measurements(file: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert train(file, tmp_path / name, "--arm", "avg", "--set", "train.seeds=[0, 1]") == 0
    for seed in (0, 1):
        one, two = (lines(tmp_path / name / "avg" / f"seed-{seed}.jsonl")[1:] for name in ("one", "two"))
        assert one == two
        assert all(row["seed"] == seed for row in one[:-1])
    losses = [[row["value"] for row in lines(tmp_path / "one" / "avg" / f"seed-{s}.jsonl")[1:-1]] for s in (0, 1)]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("arm", ["avg", "all", "ring"])
def test_a_run_that_was_killed_goes_on_from_its_checkpoint(
    arm: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(file, tmp_path / "whole", "--arm", arm) == 0
    monkeypatch.setattr(simulate, "_SAVE_EVERY_S", -1.0)
    note = Record.note

    def killed(self: Record, row: tuple[int, str, float]) -> None:
        if row[0] == 3:
            raise KeyboardInterrupt
        note(self, row)

    monkeypatch.setattr(Record, "note", killed)
    assert train(file, tmp_path / "runs", "--arm", arm) == 130
    monkeypatch.setattr(Record, "note", note)
    run = tmp_path / "runs" / arm / "seed-0.jsonl"
    assert lines(run)[-1] == {"record": "end", "status": "stopped"} and run.with_suffix(".npz").exists()
    capsys.readouterr()
    assert train(file, tmp_path / "runs", "--arm", arm) == 2
    assert "holds a run already; add --resume" in capsys.readouterr().err
    with run.open("a") as cut:
        cut.write('{"record": "metr')
    assert train(file, tmp_path / "runs", "--arm", arm, "--resume") == 0
    whole = tmp_path / "whole" / arm / "seed-0.jsonl"
    assert lines(run)[1:] == lines(whole)[1:]
    assert not run.with_suffix(".npz").exists()
    # Once more: everything is there, nothing is trained, and the table is the same.
    before = run.read_bytes()
    table = json.loads(capsys.readouterr().out)
    assert train(file, tmp_path / "runs", "--arm", arm, "--resume") == 0
    assert run.read_bytes() == before and json.loads(capsys.readouterr().out) == table
    assert train(file, tmp_path / "runs", "--arm", arm, "--resume", "--set", "train.optimizer.lr=0.3") == 2
    assert "was run with another 'setting'" in capsys.readouterr().err


def test_a_run_leaves_no_samples_in_memory_for_the_next(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[Any]] = []

    def watched(*args: Any) -> Any:
        assert not [population for population in made if population() is not None]
        stage = scene(*args)
        made.append(weakref.ref(stage.population))
        return stage

    scene = command.scene
    monkeypatch.setattr(command, "scene", watched)
    assert train(file, tmp_path / "runs", "--arm", "avg", "--set", "train.seeds=[0, 1, 2]") == 0
    assert len(made) == 3


def test_a_run_that_diverges_ends_alone(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(EXPERIMENT.replace("train.optimizer.momentum = 0.5", "train.optimizer.lr = 1e30"))
    assert train(file, tmp_path / "runs") == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["failed"] for row in document["arms"]] == [0, 1, 0]
    assert document["expectations"][0]["verdict"].startswith("not comparable: an arm did not run, failed")
    end = lines(tmp_path / "runs" / "all" / "seed-0.jsonl")[-1]
    assert end["status"] == "failed" and "overflow a sum" in end["error"]


def test_a_users_own_rule_is_found_beside_the_file(file: Path, tmp_path: Path) -> None:
    (own,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "experiments.md").read_text("utf-8"), re.M | re.S)
    (tmp_path / "mine.py").write_text(own)
    file.write_text(EXPERIMENT + '[[arm]]\nid = "mine"\nstrategy = { name = "./mine.py" }\n')
    assert train(file, tmp_path / "runs", "--arm", "mine") == 0
    accuracy = [row["value"] for row in lines(tmp_path / "runs" / "mine" / "seed-0.jsonl") if row.get("round") == 4]
    assert accuracy[0] > 0.3


def test_an_asynchronous_strategy_counts_its_servers_steps(file: Path, tmp_path: Path) -> None:
    arm = '[[arm]]\nid = "buff"\nstrategy = { name = "fedbuff", buffer = 2 }\n'
    world = "world = { compute_s = 1.0, slow_share = 0.4, slow_factor = 10.0 }\n"
    file.write_text(EXPERIMENT + arm + world + "train = { rounds = 12 }\n")
    more = ["--set", 'measure.metrics=["test_accuracy", "virtual_time_s"]']
    assert train(file, tmp_path / "runs", "--arm", "buff", *more) == 0
    last = {row["metric"]: row["value"] for row in lines(tmp_path / "runs" / "buff" / "seed-0.jsonl")[1:-1]}
    assert last["test_accuracy"] > 0.3
    # 24 updates; three workers bring one every 2 s each, so that the slow ones, of 20 s, are not waited for.
    assert last["virtual_time_s"] == pytest.approx(16.0)


SEARCH = """
[search]
seed   = 7
rounds = 2
values = { "train.optimizer.lr" = [0.0, 0.5, 1e30], "train.batch_size" = [64, 128] }
"""


def test_open_values_are_tried_on_a_seed_of_their_own(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(
        EXPERIMENT.replace('gossip = { name = "d_psgd" }', 'gossip = { name = "d_psgd" }\nsearch = {}') + SEARCH
    )
    assert train(file, tmp_path / "runs", "--arm", "avg", "--arm", "ring") == 0
    printed = capsys.readouterr()
    avg, ring = json.loads(printed.out)["arms"]
    assert avg["train.optimizer.lr"] == 0.5 and "train.optimizer.lr" not in ring
    assert not (tmp_path / "runs" / "ring" / "search").exists()
    tried = {path.stem: lines(path) for path in (tmp_path / "runs" / "avg" / "search").iterdir()}
    assert len(tried) == 6
    head, *_, end = tried["train.optimizer.lr=0.5,train.batch_size=64"]
    assert (head["seed"], head["measured_on"], end["status"]) == (7, "validation", "complete")
    assert head["setting"]["train"]["rounds"] == 2 and head["setting"]["train"]["batch_size"] == 64
    reached = {
        name: [row["value"] for row in found if row.get("metric") == "test_accuracy"][-1]
        for name, found in tried.items()
        if found[-1]["status"] == "complete"
    }
    chosen = max(reached, key=reached.__getitem__)
    assert chosen == f"train.optimizer.lr={avg['train.optimizer.lr']},train.batch_size={avg['train.batch_size']}"
    head = lines(tmp_path / "runs" / "avg" / "seed-0.jsonl")[0]
    assert head["setting"]["train"]["optimizer"]["lr"] == 0.5 and head["setting"]["train"]["rounds"] == 4
    # Once more: nothing is trained again but what has failed, and the choice stays.
    assert train(file, tmp_path / "runs", "--arm", "avg", "--resume") == 0
    assert json.loads(capsys.readouterr().out)["arms"][0] == avg
    assert train(file, tmp_path / "procs", "--arm", "avg", "--on", "processes") == 2
    assert "trials are simulated only" in capsys.readouterr().err


def test_an_arm_may_search_options_of_its_rule(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(
        EXPERIMENT + SEARCH + '[[arm]]\nid = "c"\ngossip = { name = "choco" }\nsearch."gossip.gamma" = [0.2]\n'
    )
    assert train(file, tmp_path / "runs", "--arm", "c") == 0
    assert json.loads(capsys.readouterr().out)["arms"][0]["gossip.gamma"] == 0.2
    assert lines(tmp_path / "runs" / "c" / "seed-0.jsonl")[0]["gossip"] == {"name": "choco", "gamma": 0.2}


BAD = [
    ('"shards"', '"shard"', r'no such partition: \'shard\'; nearest is "shards"'),
    ("per_worker = 2", "per_workr = 2", "partition 'shards': no option 'per_workr'"),
    ("delta = 0.0", "dleta = 0.0", "strategy 'dynamic_averaging': no option 'dleta'; nearest is \"delta\""),
    ("train.rounds = 6", "train.round = 6", r"tiny.toml: arm\[2\]: train.round: no such key; nearest is \"rounds\""),
    ('id     = "ring"', 'id     = "avg"', r"arm\[2\].id = 'avg': an earlier arm has this id"),
    ('id     = "ring"', 'id     = "a/b"', r"arm\[2\].id = 'a/b': letters, digits"),
    ('gossip = { name = "d_psgd" }', "", r"arm\[2\]: write either strategy"),
    ('gossip = { name = "d_psgd" }', "gossip = {}", r"arm\[2\].gossip.name: missing"),
    ('name   = "mlp"', 'kind = "mlp"', r"model.name: missing"),
    ('"train_loss"', '"train_los"', "no metric 'train_los'; nearest is \"train_loss\""),
    ("all > avg", "all > avgg", r"expect\[0\].claim: no arm 'avgg'; nearest is \"avg\""),
    ("all > avg", "all is better", r"expect\[0\].claim = 'all is better': write ARM > ARM"),
    ('"best_test_accuracy"', '"accuracy"', r"expect\[1\].metric: no metric 'accuracy'"),
    ("num_workers = 5", "num_workers = 0", r"train.num_workers = 0: expected a whole number >= 1"),
    ("num_workers = 5", "num_workers = 5000", "1222 samples cannot be dealt to 5000 workers"),
    (
        "[measure]",
        '[search]\nseed = 0\nvalues = { "train.optimizer.lr" = [0.1] }\n[measure]',
        "seed 0 is one of train.seeds",
    ),
    (
        "[measure]",
        '[search]\nseed = 7\nvalues = { "train.optimizer.lrr" = [0.1] }\n[measure]',
        'no such key; nearest is "lr"',
    ),
    (
        "[measure]",
        '[search]\nseed = 7\nvalues = { "trian.lr" = [0.1] }\n[measure]',
        'trian: no such key; nearest is "train"',
    ),
    ("[measure]", '[search]\nseed = 7\nvalues = { "rounds" = [2] }\n[measure]', "search: no key 'rounds'; write one"),
    ("[measure]", '[search]\nseed = 7\nvalues = { "train.rounds" = [] }\n[measure]', "search.values"),
    ("train.rounds = 6", 'search."train.rounds" = [1]', r"write a table \[search\] with the seed"),
    ("momentum = 0.5", "momentum = 1.5", r"job: momentum = 1\.5 must be in \[0, 1\)"),
]


@pytest.mark.parametrize(("old", "new", "message"), BAD)
def test_mistakes_are_named(
    old: str, new: str, message: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert old in EXPERIMENT
    file.write_text(EXPERIMENT.replace(old, new))
    assert train(file, tmp_path / "runs") == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.search(message, printed.err), printed.err


def test_flags_are_checked(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(file)]) == 2
    assert "needs --out" in capsys.readouterr().err
    assert main(["train", str(file), "--out", str(tmp_path / "o"), "--data", "digits"]) == 2
    assert "either --data or an experiment FILE" in capsys.readouterr().err
    assert train(file, tmp_path / "runs", "--arm", "avgg") == 2
    assert 'tiny.toml has no such arm; nearest is "avg"' in capsys.readouterr().err


def record(tmp_path: Path, arm: str, seed: int, accuracy: list[float], error: str = "") -> Record:
    made = Record(tmp_path / arm / f"seed-{seed}.jsonl", {"arm": arm, "seed": seed})
    with made.until_the_end():
        for round, value in enumerate(accuracy):
            made.note((round, "test_accuracy", value))
        if error:
            raise NodeFailed(error)
    return made


def test_summaries_and_verdicts_by_hand(tmp_path: Path) -> None:
    runs = {
        "a": [record(tmp_path, "a", 0, [0.1, 0.5, 0.4]), record(tmp_path, "a", 1, [0.1, 0.2, 0.6])],
        "b": [record(tmp_path, "b", 0, [0.1, 0.2, 0.3]), record(tmp_path, "b", 1, [0.5], "unplugged")],
    }
    rows = summary(runs, Measure(metrics=["test_accuracy"], target=0.5))
    assert rows[0] == {
        "arm": "a", "seeds": 2, "failed": 0, "test_accuracy": "0.5 +- 0.14", "rounds_to_target": "1.5 +- 0.71"
    }  # fmt: skip
    assert (rows[1]["failed"], rows[1]["test_accuracy"], rows[1]["rounds_to_target"]) == (1, "0.3", None)

    def verdict(claim: str, **more: Any) -> str:
        (row,) = judge([Expectation(claim=claim, **more)], runs, 0.5)
        return str(row["verdict"])

    assert [verdict(f"a {sign} 0.5") for sign in (">", ">=", "==", "<=", "<")] == [
        "not held", "held", "held", "held", "not held"
    ]  # fmt: skip
    assert [verdict("a > 0.35", margin=m) for m in (0.1, 0.2)] == ["held", "not held"]
    assert [verdict("a == 0.4", margin=m) for m in (0.05, 0.11)] == ["not held", "held"]
    assert verdict("a == 0.55", metric="best_test_accuracy", margin=1e-9) == "held"
    assert verdict("1.5 == a", metric="rounds_to_target") == "held"
    assert verdict("a > b").startswith("not comparable: an arm did not run")
    with pytest.raises(ConfigError, match="no arm 'c'"):
        check_claims([Expectation(claim="a > c")], ["a", "b"])


def test_an_arm_that_names_another_algorithm_takes_none_of_the_old_options(file: Path) -> None:
    file.write_text(EXPERIMENT.replace('data.partition = { name = "iid" }', "data.partition.per_worker = 3"))
    _, settings = read(file, ["train.rounds=9"])
    assert settings["all"].data.partition == {"name": "shards", "per_worker": 3}
    assert settings["avg"].train.rounds == 9 and settings["ring"].train.rounds == 6


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "experiments").glob("*.toml")), ids=lambda path: path.stem)
def test_the_examples_are_whole(path: Path) -> None:
    experiment, settings = read(path, [])
    check_claims(experiment.expect, list(settings))
    for arm in experiment.arm:
        check(arm, settings[arm.id], path.parent)
        trials(experiment, arm, settings[arm.id], path.parent)
