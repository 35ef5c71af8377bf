from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tierline.core.errors import ConfigError
from tierline.core.types import NodeId
from tierline.learning.compute import Job
from tierline.models.data.dataset import Dataset, Split
from tierline.models.train.population import Population

RNG = np.random.default_rng(0)
NODES = tuple(NodeId(f"w{i}") for i in range(3))


def split(num: int) -> Split:
    """Two classes, dark and light, colour images."""
    labels = np.arange(num) % 2
    images = (RNG.integers(0, 100, (num, 4, 4, 3)) + 150 * labels[:, None, None, None]).astype(np.uint8)
    return Split(images, labels)


DATA = Dataset("shades", ["dark", "light"], split(30), split(9), split(20))


def population(*, seed: int = 0, data: Dataset = DATA, **more: Any) -> Population:
    model = {"name": "mlp", "hidden": [8]}
    return Population(data, NODES, **{"partition": {"name": "iid"}, "model": model, "seed": seed, **more})


def test_the_seed_draws_the_model_and_the_parts() -> None:
    one, again, other = population(), population(), population(seed=1)
    assert np.array_equal(one.start.flat, again.start.flat)
    assert not np.array_equal(one.start.flat, other.start.flat)
    assert dict(one.start.layout)["layers.0.weight"] == (8, 48)
    assert [t.num_samples for t in one.trainers.values()] == [10, 10, 10]
    assert sum(t.num_samples for t in population(with_validation=True).trainers.values()) == 39


def test_batches_go_through_a_nodes_samples_once_per_epoch() -> None:
    nodes = population()
    batches = [nodes.batch(NODES[1], round, 5, "r") for round in range(4)]
    assert batches[0]["inputs"].shape == (5, 3, 4, 4) and batches[0]["inputs"].dtype == np.float32
    assert batches[0]["inputs"].min() >= 0.0 and batches[0]["inputs"].max() <= 1.0
    epochs = [np.concatenate([batch["inputs"] for batch in batches[k : k + 2]]) for k in (0, 2)]
    first, second = ({image.tobytes() for image in epoch} for epoch in epochs)
    assert first == second and len(first) == 10
    assert not np.array_equal(epochs[0], epochs[1])
    assert nodes.batch(NODES[1], 0, None, "r") == nodes.batch(NodeId("server"), 0, 5, "r") == {}
    assert len(nodes.batch(NODES[1], 7, 500, "r")["labels"]) == 10


def test_accuracy_is_that_of_the_test_split() -> None:
    nodes = population()
    x = nodes.start
    for round in range(30):
        x = nodes.trainers[NODES[round % 3]].fit(x, Job(lr=0.2)).values
    assert nodes.evaluate(x)["test_accuracy"] == 1.0
    assert nodes.evaluate(x)["test_loss"] < nodes.evaluate(nodes.start)["test_loss"]
    assert nodes.evaluate(-1.0 * x)["test_accuracy"] < 1.0


def test_what_cannot_be_dealt_is_refused() -> None:
    tiny = Dataset("tiny", ["a", "b"], split(2), split(2), split(2))
    with pytest.raises(ConfigError, match="tiny: 2 samples cannot be dealt to 3 workers"):
        population(data=tiny)
    views = Split(np.zeros((6, 2, 4, 4, 3), np.uint8), np.zeros(6, np.int64))
    with pytest.raises(ConfigError, match="samples of several views train a DDNN"):
        population(data=Dataset("views", ["a"], views, views, views))
