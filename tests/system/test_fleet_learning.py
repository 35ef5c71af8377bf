"""A running hierarchy learns over the connections that it has, and gives the bytes that simulation gives."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from tiny_bundle import VIEWS, images, make_tiny_bundle, three_tiers

from tierline.cli.experiment.scene import scene
from tierline.cli.experiment.simulate import simulate
from tierline.cli.fleet_files import FleetSpec
from tierline.cli.supervisor import Fleet
from tierline.cloud.config import PlanKnobs
from tierline.cloud.jobs import request_of
from tierline.core.config.sections import Learn
from tierline.core.errors import ConfigError, SecurityError
from tierline.core.link.jobs import JobAsker
from tierline.core.link.tls import TlsFiles
from tierline.core.plan import Join
from tierline.edge.config import SourceConfig
from tierline.learning.experiment.file import Experiment, parse, settings_of
from tierline.learning.experiment.scene import Row
from tierline.models.data.load import load

T = TypeVar("T")
DEVICES = [f"device-{view}" for view in VIEWS]
NUM = 64
TRAIN = {"num_workers": 3, "batch_size": 10}


def experiment(rounds: int, epochs: int = 1, **tables: Any) -> Experiment:
    table = {
        "schema": 1,
        "name": "on-the-fleet",
        "data": {"name": "digits"},
        "model": {"name": "mlp", "hidden": [16]},
        "train": {**TRAIN, "rounds": rounds, "epochs": epochs},
        "measure": {"metrics": ["test_accuracy", "train_loss", "num_messages", "num_bytes"]},
        "arm": [{"id": "fedavg", "strategy": {"name": "fedavg"}}, {"id": "d_psgd", "gossip": {"name": "d_psgd"}}],
        **tables,
    }
    return parse(table, "test")


class Kept:
    """Keeps the rows of a simulation."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.note = self.rows.append

    def save(self, *_: object) -> None: ...

    def saved(self, nodes: object = ()) -> None: ...


def simulated(what: Experiment, arm: str) -> tuple[list[Row], dict[str, np.ndarray]]:
    """Rows, and the model of the server, or the mean of all peers'."""
    kept, setting = Kept(), settings_of(what, "test")[arm]
    its_arm = next(a for a in what.arm if a.id == arm)
    stage = scene(its_arm, setting, 0, load("digits", 0), Path())
    rules = simulate(stage, what.measure, kept)
    return kept.rows, dict(stage.model_of({me: rule.x for me, rule in rules.items() if "x" in rule.state()}).items())


@pytest.fixture(scope="module")
def world(world_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("fleet")
    bundle = make_tiny_bundle(folder / "bundle")
    for n, view in enumerate(VIEWS):
        np.savez(folder / f"{view}.npz", images=images(NUM)[n], labels=np.arange(NUM))
    spec = FleetSpec(
        three_tiers(),
        bundle.folder,
        join=Join(by="sequence", window_ms=5000.0),
        plan=PlanKnobs(budget_ms=30_000.0),
        sources=[SourceConfig(v, f"dataset:{folder}/{v}.npz?loop=true&rate=10", in_flight=4) for v in VIEWS],
        sinks={f"device-{v}": [f"jsonl:{folder}/device-{v}.jsonl"] for v in VIEWS},
        learn=dict.fromkeys(["cloud", *DEVICES], Learn("torch")),
        tls=True,
    )
    with Fleet(spec, folder / "run") as fleet:
        yield world_of(fleet, {d: folder / f"{d}.jsonl" for d in DEVICES})


def ask(world: Any, what: Callable[[JobAsker], Coroutine[Any, Any, T]], node: str = "cloud") -> T:
    async def call() -> T:
        tls = TlsFiles.of_state(world.fleet.run_dir / "state" / node)
        async with JobAsker(world.fleet.address("cloud"), tls) as asker:
            return await what(asker)

    return asyncio.run(call())


def job_row(world: Any, job: int) -> dict[str, Any]:
    return next(row for row in ask(world, lambda root: root.jobs()) if row["job"] == job)


def journals(world: Any) -> list[Path]:
    """Of runs that are under way or stopped, at all nodes."""
    return list((world.fleet.run_dir / "state").glob(f"*/learning/{'[0-9a-f]' * 16}.sqlite"))


def until_round(world: Any, job: int, round: int) -> None:
    world.until(f"round {round} of job {job}: {job_row(world, job)}", lambda: job_row(world, job)["round"] >= round)


def submit(world: Any, what: Experiment, arm: str) -> dict[str, Any]:
    world.until(
        "all devices say that they learn",
        lambda: all(world.status().get(d, {}).get("learning", {}).get("trainer") for d in DEVICES),
    )
    return ask(world, lambda root: root.submit(request_of(what, arm, 0)))


def until_complete(world: Any, job: int, what: Experiment, arm: str) -> None:
    """The run has ended, and its measurements and model are those of simulation."""
    world.until("the job ends", lambda: job_row(world, job)["status"] not in ("running", "waiting"))
    row = job_row(world, job)
    assert (row["status"], row["error"]) == ("complete", "")
    rows, model = simulated(what, arm)
    assert [(r["round"], r["metric"], r["value"]) for r in ask(world, lambda root: root.log(job))] == rows
    with np.load(io.BytesIO(ask(world, lambda root: root.model(job)))) as found:
        assert {name: found[name].tobytes() for name in found.files} == {
            name: array.tobytes() for name, array in model.items()
        }


def test_a_device_that_is_killed_changes_nothing_and_samples_are_answered(world: Any) -> None:
    """Through the edge node, over mutual TLS."""
    what = experiment(rounds=5, epochs=8)
    row = submit(world, what, "fedavg")
    assert row["nodes"] == ["cloud", *DEVICES]
    answered = world.marks()
    until_round(world, row["job"], 1)
    world.fleet.kill(DEVICES[0])
    assert job_row(world, row["job"])["round"] < 5, "the kill came too late to prove anything"
    world.fleet.restart(DEVICES[0])
    until_complete(world, row["job"], what, "fedavg")
    world.until("samples were answered meanwhile", lambda: all(world.news(d, answered.get(d, 0)) for d in DEVICES))
    world.until("journals of a complete job go", lambda: not journals(world))


@pytest.mark.slow
def test_an_edge_node_and_a_root_that_are_killed_change_nothing(world: Any) -> None:
    what = experiment(rounds=6, epochs=8)
    row = submit(world, what, "fedavg")
    for round, victim in ((1, "edge"), (2, "cloud")):
        until_round(world, row["job"], round)
        world.fleet.kill(victim)
        world.fleet.restart(victim)
    assert job_row(world, row["job"])["round"] < 6, "the last kill came too late to prove anything"
    until_complete(world, row["job"], what, "fedavg")


def test_peers_reach_one_another_through_the_tree_and_a_stopped_run_goes_on(world: Any) -> None:
    what = experiment(rounds=40, fleet={"nodes": DEVICES[:2]})
    row = submit(world, what, "d_psgd")
    assert row["nodes"] == DEVICES[:2]
    until_round(world, row["job"], 2)
    assert ask(world, lambda root: root.change(row["job"], "stop"))["status"] == "stopped"
    assert len(journals(world)) >= 2
    assert 2 <= (stopped := job_row(world, row["job"]))["round"] < 40
    assert ask(world, lambda root: root.jobs())[-1] == stopped
    assert ask(world, lambda root: root.change(row["job"], "resume"))["status"] in ("waiting", "running")
    until_complete(world, row["job"], what, "d_psgd")


def test_only_the_root_itself_takes_jobs_and_none_names_a_file(world: Any) -> None:
    before = len(ask(world, lambda root: root.jobs(), "edge"))
    request = request_of(experiment(1), "fedavg", 0)
    with pytest.raises(SecurityError, match="the certificate belongs to edge, not to 'cloud'"):
        ask(world, lambda root: root.submit(request), "edge")
    for table, message in (
        ({"arm": [{"id": "fedavg", "strategy": {"name": "/tmp/rule.py"}}]}, "a fleet runs what comes with tierline"),
        ({"data": {"name": "/etc"}}, "and no files"),
        ({"fleet": {"nodes": ["device-9"]}}, "the hierarchy has no node 'device-9'"),
        ({"model": {"name": "mlpp"}}, "no such model: 'mlpp'; nearest is \"mlp\""),
    ):
        wrong = {**request["experiment"], **table}
        with pytest.raises(ConfigError, match=message):
            ask(world, lambda root, wrong=wrong: root.submit({**request, "experiment": wrong}))
    assert len(ask(world, lambda root: root.jobs())) == before


def test_an_experiment_is_submitted_followed_and_compared(
    world: Any, command: Callable[..., Any], tmp_path: Path
) -> None:
    """By the commands that an operator types."""
    address, state = world.fleet.address("cloud"), str(world.fleet.run_dir / "state" / "cloud")
    file = tmp_path / "two.toml"
    file.write_text(
        """
schema = 1
name   = "two"
data.name = "digits"
model  = { name = "mlp", hidden = [16] }
train  = { num_workers = 4, rounds = 2, batch_size = 10 }

[[arm]]
id       = "fedavg"
strategy = { name = "fedavg" }

[[arm]]
id       = "scaffold"
strategy = { name = "scaffold" }
"""
    )
    done = command("train", str(file), address, "--on", "fleet", "--out", "runs", "--state-dir", state, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "which goes on without this command" in done.stderr
    listed = command("job", "ls", address, "--state-dir", state, "--format", "json", cwd=tmp_path)
    rows = json.loads(listed.stdout)[-2:]
    assert [(r["arm"], r["status"], r["round"]) for r in rows] == [
        ("fedavg", "complete", "2/2"),
        ("scaffold", "complete", "2/2"),
    ]
    chosen = [word for row in rows for word in ("--job", row["job"])]
    there = command("job", "compare", address, *chosen, "--state-dir", state, "--format", "json", cwd=tmp_path)
    here = command("job", "compare", "runs", "--format", "json", cwd=tmp_path)
    of_root, of_folder = (
        [{key: value for key, value in row.items() if key != "job"} for row in json.loads(done.stdout)]
        for done in (there, here)
    )
    assert of_root == of_folder and len(of_root) == 2
    models = []
    for place, job, extra in ((address, rows[0]["job"], ("--state-dir", state)), ("runs", "fedavg/seed-0", ())):
        out = tmp_path / f"{len(models)}.npz"
        made = command("job", "export", place, "--job", job, "--model", str(out), *extra, cwd=tmp_path)
        assert made.returncode == 0, made.stderr
        with np.load(out) as found:
            models.append({name: found[name].tobytes() for name in found.files})
    assert models[0] == models[1] != {}


def test_a_run_that_diverges_fails_by_name_and_the_next_one_learns(world: Any) -> None:
    wild = experiment(2, fleet={"nodes": DEVICES[:1]}, train={**TRAIN, "rounds": 2, "optimizer": {"lr": 1e30}})
    bad, good = (submit(world, what, "fedavg")["job"] for what in (wild, experiment(1)))
    world.until("the first fails", lambda: job_row(world, bad)["status"] == "failed")
    assert job_row(world, bad)["error"].startswith(f"{DEVICES[0]}: trainer: the loss is nan after")
    until_complete(world, good, experiment(1), "fedavg")
