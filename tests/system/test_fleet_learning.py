"""A running hierarchy learns over the connections that it has, and gives the bytes that simulation gives."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from tiny_bundle import VIEWS, images, make_tiny_bundle, three_tiers

from tierline.cli.experiment.simulate import simulate
from tierline.cli.fleet_files import FleetSpec
from tierline.cli.supervisor import Fleet
from tierline.cloud.config import PlanKnobs
from tierline.cloud.jobs import request_of
from tierline.core.config.sections import Learn
from tierline.core.link.jobs import JobAsker
from tierline.core.link.tls import TlsFiles
from tierline.core.plan import Join
from tierline.edge.config import SourceConfig
from tierline.learning.cast import SERVER
from tierline.learning.experiment.file import Experiment, parse, settings_of
from tierline.learning.experiment.scene import Row
from tierline.models.data.load import load

T = TypeVar("T")
DEVICES = [f"device-{view}" for view in VIEWS]
NUM = 64


def experiment(rounds: int, epochs: int = 1, **tables: Any) -> Experiment:
    table = {
        "schema": 1,
        "name": "on-the-fleet",
        "data": {"name": "digits"},
        "model": {"name": "mlp", "hidden": [16]},
        "train": {"num_workers": 3, "rounds": rounds, "epochs": epochs, "batch_size": 10},
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
    """Rows, and the model of the server or of the first peer."""
    kept, setting = Kept(), settings_of(what, "test")[arm]
    its_arm = next(a for a in what.arm if a.id == arm)
    rules = simulate(its_arm, setting, 0, what.measure, load("digits", 0), Path(), kept)
    return kept.rows, dict(next(iter(rules.values())).x.items()) if SERVER in rules else {}


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
        assert not model or {name: found[name].tobytes() for name in found.files} == {
            name: array.tobytes() for name, array in model.items()
        }


def test_nodes_that_are_killed_change_nothing_and_samples_are_answered(world: Any) -> None:
    what = experiment(rounds=6, epochs=8)
    row = submit(world, what, "fedavg")
    assert row["nodes"] == ["cloud", *DEVICES]
    answered = world.marks()
    for round, victim in ((1, DEVICES[0]), (2, "edge"), (3, "cloud")):
        until_round(world, row["job"], round)
        world.fleet.kill(victim)
        world.fleet.restart(victim)
    assert job_row(world, row["job"])["round"] < 6, "the last kill came too late to prove anything"
    until_complete(world, row["job"], what, "fedavg")
    world.until("samples were answered meanwhile", lambda: all(world.news(d, answered.get(d, 0)) for d in DEVICES))
