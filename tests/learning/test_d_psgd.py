"""D-PSGD on quadratics f_i(x) = 1/2 (x - b_i)' A_i (x - b_i), where everything can be worked out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tierline.core import catalog
from tierline.core.arrays import Params
from tierline.core.errors import ConfigError, NodeFailed
from tierline.core.types import Arrays, NodeId
from tierline.learning.compute import Gradient
from tierline.learning.driver.memory import Memory
from tierline.learning.driver.world import LinkSpec, World
from tierline.learning.effects import Effects, gradient
from tierline.learning.rule import Turn

DIM, N = 6, 5
RNG = np.random.default_rng(5)
X0 = RNG.normal(size=DIM).astype(np.float32)
B = RNG.normal(size=(N, DIM)).astype(np.float32)
A = RNG.uniform(0.3, 1.0, (N, DIM)).astype(np.float32)
EQUAL = np.ones((N, DIM), np.float32)


class Quadratic:
    def __init__(self, a: np.ndarray, b: np.ndarray) -> None:
        self.a, self.b = a, b

    def gradient(self, at: Params, batch: Arrays, terms: object = ()) -> Gradient:
        return Gradient(Params(at.layout, self.a * (at.flat - self.b)), 0.0, 1)


def run(
    make: Callable[[], Any] | str,
    rounds: int,
    *,
    a: np.ndarray = A,
    lr: float = 0.2,
    topology: str = "complete",
    **options: object,
) -> tuple[np.ndarray, Memory]:
    """Models after some rounds, float32 (N, DIM)."""
    ids = [NodeId(f"p{i}") for i in range(N)]
    world = options.pop("world", None)
    rules = {me: catalog.make("gossip", make, **options) if isinstance(make, str) else make() for me in ids}
    trainers = {me: Quadratic(a[i], B[i]) for i, me in enumerate(ids)}
    x = Params.from_arrays({"x": X0})
    graph = catalog.make("topology", topology)
    driver = Memory(rules, trainers, graph, x, lr=lambda round: lr, world=world)  # type: ignore[arg-type]
    driver.run(rounds)
    return np.stack([rule.x.flat for rule in rules.values()]), driver


def test_one_adapted_step_on_the_complete_graph_reaches_the_mean_optimum() -> None:
    # With A = I and lr = 1 each peer jumps to its own b_i, and one mixing with equal weights gives their mean.
    x, _ = run("d_psgd", 1, a=EQUAL, lr=1.0, form="adapt")
    assert np.abs(x - B.mean(axis=0, dtype=np.float64)).max() < 1e-6
    assert (x == x[0]).all()


def test_adapted_on_the_complete_graph_is_synchronous_sgd_on_the_average_gradient() -> None:
    x, _ = run("d_psgd", 25, form="adapt")
    y = X0.astype(np.float64)
    for _ in range(25):
        y -= 0.2 * (A * (y - B)).mean(axis=0, dtype=np.float64)
    assert np.abs(x - y).max() < 1e-6


class SyncSgd:
    """Synchronous SGD, its mean gradient taken by the room's Reducer."""

    def __init__(self) -> None:
        self.peer = catalog.make("gossip", "d_psgd")
        self.traits, self.start, self.resync = self.peer.traits, self.peer.start, self.peer.resync
        self.state, self.load = self.peer.state, self.peer.load
        self.mean = catalog.make("reduce", "mean", fraction_bits=40)

    @property
    def x(self) -> Params:
        x: Params = self.peer.x
        return x

    def turn(self, t: Turn) -> Effects[None]:
        g = yield from gradient(self.x, t.batch)
        mean = yield from self.mean.mean("g", g.values, t)
        self.peer.x = self.x - t.lr * mean


def test_adapted_on_the_complete_graph_is_synchronous_sgd_by_sums() -> None:
    gossip, _ = run("d_psgd", 25, form="adapt")
    sums, _ = run(SyncSgd, 25)
    assert (sums == sums[0]).all()
    assert np.abs(gossip - sums).max() < 1e-6


@pytest.mark.parametrize("topology", ["ring", "lazy_ring", "complete"])
def test_the_papers_form_follows_its_equation(topology: str) -> None:
    x, _ = run("d_psgd", 10, topology=topology)
    w = catalog.make("topology", topology).mixing_matrix(N)
    y = np.tile(X0.astype(np.float64), (N, 1))
    for _ in range(10):
        y = w @ y - 0.2 * A * (y - B)
    assert np.abs(x - y).max() < 1e-6


@pytest.mark.parametrize("form", ["paper", "adapt"])
def test_with_equal_curvature_the_mean_does_gradient_descent_on_any_graph(form: str) -> None:
    x, _ = run("d_psgd", 30, a=EQUAL, topology="ring", form=form)
    y = X0.astype(np.float64)
    for _ in range(30):
        y -= 0.2 * (y - B.mean(axis=0, dtype=np.float64))
    assert np.abs(x.mean(axis=0, dtype=np.float64) - y).max() < 1e-6


def test_the_papers_form_computes_while_models_travel() -> None:
    world = World(compute_s=0.3, link=LinkSpec(latency_s=0.2))
    assert run("d_psgd", 4, topology="ring", world=world)[1].time_s == pytest.approx(4 * 0.3)
    assert run("d_psgd", 4, topology="ring", world=world, form="adapt")[1].time_s == pytest.approx(4 * 0.5)


def test_weights_of_silent_neighbours_fall_to_oneself() -> None:
    ids = [NodeId(f"p{i}") for i in range(N)]
    world = World(link_of={(ids[1], ids[0]): LinkSpec(latency_s=9.0)})
    x, driver = run("d_psgd", 1, topology="ring", form="adapt", within_s=0.1, world=world)
    half = X0 - 0.2 * A * (X0 - B)
    assert np.abs(x[0] - (2 / 3 * half[0] + 1 / 3 * half[4])).max() < 1e-6
    assert np.abs(x[1] - (half[0] + half[1] + half[2]) / 3).max() < 1e-6
    assert driver.counts.num_late == 1


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ConfigError, match='d_psgd: form = \'fast\'; valid: "paper", "adapt"'):
        catalog.make("gossip", "d_psgd", form="fast")


def test_a_diverging_run_of_sums_says_so() -> None:
    with pytest.raises(NodeFailed, match=r"p0, turn \d+: bad_frame: sum 'g': .* overflow") as caught:
        run(SyncSgd, 500, lr=100.0)
    assert "back at its last finished turn" in str(caught.value)
