"""A DDNN that trains over its links against the same DDNN in one process: the same loss, the same steps."""

from __future__ import annotations

import asyncio
import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.linked import Linked
from torch.nn.functional import cross_entropy

from tierline.core import catalog
from tierline.core.arrays import Params
from tierline.core.errors import BadFrame, ConfigError
from tierline.core.rng import Key
from tierline.core.types import NodeId
from tierline.learning.cast import SERVER, federation, worker_ids
from tierline.learning.compute import Job
from tierline.learning.driver.memory import Memory
from tierline.learning.rule import Rule
from tierline.learning.strategy.ddnn import _rows
from tierline.models.ddnn import DDNN, DDNNConfig
from tierline.models.train.ddnn import joint_loss
from tierline.models.train.flat import FlatModel
from tierline.models.train.local import LocalTrainer
from tierline.models.train.tiers import DeviceTier, RootTier

N, S, K = 3, 48, 3
RNG = np.random.default_rng(0)
VIEWS = RNG.normal(size=(N, S, 1, 8, 8)).astype(np.float32)
LABELS = RNG.integers(0, K, S)
PRESENT = RNG.random((N, S)) < 0.8
PRESENT[0] |= ~PRESENT.any(0)
VIEW_LABELS = np.where(PRESENT, LABELS, -1)
WEIGHTS = {"device": 0.5, "edge": 2.0}


def build(**how: Any) -> DDNN:
    config = DDNNConfig(N, K, (1, 8, 8), 3, edge_filters=4, cloud_filters=5, cloud_blocks=1, **how)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return DDNN(config)


def trainers_of(model: DDNN) -> dict[NodeId, LocalTrainer]:
    ids = worker_ids(N)
    loss = partial(cross_entropy, ignore_index=-1)
    trainers = {
        me: LocalTrainer(
            FlatModel(DeviceTier(copy.deepcopy(model), i)),
            torch.from_numpy(VIEWS[i]), torch.from_numpy(VIEW_LABELS[i]), loss=loss,
        )
        for i, me in enumerate(ids)
    }  # fmt: skip
    trainers[SERVER] = LocalTrainer(
        FlatModel(RootTier(copy.deepcopy(model))), torch.zeros(S, 1), torch.from_numpy(LABELS)
    )
    return trainers


def rules() -> dict[NodeId, Rule]:
    return federation("ddnn", N, {"exit_weights": {"edge": 2.0}, "device_weight": 0.5})


def over_the_links(model: DDNN, job: Job, rounds: int) -> tuple[dict[str, np.ndarray], Memory]:
    start, star = FlatModel(copy.deepcopy(model)).read(), catalog.make("topology", "star")
    driver = Memory(of_nodes := rules(), trainers_of(model), star, start, lr=lambda _: job.lr, job=job)
    driver.run(rounds)
    return {name: value for rule in of_nodes.values() for name, value in rule.x.items()}, driver


def in_one_process(model: DDNN, job: Job, rounds: int) -> dict[str, np.ndarray]:
    """As `train.ddnn` does, with torch's own optimisers."""
    model = copy.deepcopy(model).train()
    for round in range(rounds):
        if job.optimizer == "adam":
            optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=job.lr)
        else:
            optimizer = torch.optim.SGD(model.parameters(), lr=job.lr, momentum=job.momentum)
        key = Key("run", round, "", "", "fit")
        for epoch in range(job.epochs):
            for rows in torch.split(torch.from_numpy(key.child(f"epoch {epoch}").permutation(S)), job.batch_size or S):
                seen = torch.from_numpy(VIEW_LABELS)[:, rows]
                outputs = model(torch.from_numpy(VIEWS)[:, rows], seen >= 0)
                optimizer.zero_grad()
                joint_loss(outputs, torch.from_numpy(LABELS)[rows], seen, WEIGHTS).backward()
                optimizer.step()
    return {name: p.detach().numpy() for name, p in model.named_parameters()}


@pytest.mark.parametrize("how", [{}, {"local_aggregator": "concat", "feature_aggregator": "avg_pool"}], ids=str)
@pytest.mark.parametrize(
    "job",
    [Job(epochs=2, batch_size=16, lr=0.05, momentum=0.9), Job(epochs=2, batch_size=16, lr=1e-3, optimizer="adam")],
    ids=["sgd", "adam"],
)
def test_joint_training_over_the_links_is_that_of_one_process(job: Job, how: dict[str, Any]) -> None:
    model = build(device_precision="full", edge_precision="full", **how)
    found, _ = over_the_links(model, job, 3)
    expected = in_one_process(model, job, 3)
    assert found.keys() == expected.keys()
    start = {name: p.detach().numpy() for name, p in model.named_parameters()}
    moved = [np.abs(expected[name] - start[name]).max() for name in expected if name.endswith("weight")]
    assert min(moved) > 1e-3
    assert max(float(np.abs(found[name] - expected[name]).max()) for name in expected) < 1e-5


def test_streams_give_what_memory_gives(tmp_path: Path) -> None:
    model, job = build(), Job(batch_size=16, lr=0.05, momentum=0.9)
    _, driver = over_the_links(model, job, 2)
    star, x = catalog.make("topology", "star"), FlatModel(copy.deepcopy(model)).read()
    nodes = tuple(rules())
    run = Linked(rules, trainers_of(model), star, x, tmp_path, [nodes[:1], nodes[1:3], nodes[3:]], lr=job.lr, job=job)
    asyncio.run(asyncio.wait_for(run.run(2), 60))
    found = run.states()
    for me, state in driver.states().items():
        assert {name: np.asarray(value).tobytes() for name, value in found[me].items()} == {
            name: np.asarray(value).tobytes() for name, value in state.items()
        }


def test_a_model_that_is_no_ddnn_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no tensors of its own for .*; .* devices\.0\."):
        x = Params.from_arrays({"w": np.zeros(2, np.float32)})
        Memory(federation("ddnn", 1, {}), {}, catalog.make("topology", "star"), x, lr=lambda _: 0.1)


def test_rows_that_no_device_sends_are_refused() -> None:
    device = NodeId("d")
    assert list(_rows({"rows": np.array([0, 3])}, device, 4)) == [0, 3]
    for rows in (
        np.array([3, 0]),
        np.array([1, 1]),
        np.array([4]),
        np.array([-1]),
        np.array([[0]]),
        np.array([0.5]),
        0,
    ):
        with pytest.raises(BadFrame, match="ddnn: d "):
            _rows({"rows": rows}, device, 4)
