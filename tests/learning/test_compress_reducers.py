"""Reducers that compress: PowerSGD and sums over the air, on many nodes in memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tierline.core import catalog
from tierline.core.arrays import Params
from tierline.core.errors import ConfigError, NodeFailed
from tierline.core.types import NodeId
from tierline.learning.driver.memory import Memory
from tierline.learning.effects import Effects
from tierline.learning.rule import NodeInfo, Reducer, State, Traits, Turn
from tierline.learning.signs import random_signs


class Averaging:
    """Averages what `given` says, round by round, and remembers the results."""

    traits = Traits(tolerates_loss=False, per_edge_state=False, conserves=None, directed=False)
    x: Params

    def __init__(self, reducer: Reducer, given: Callable[[int], Params], weight: float = 1.0) -> None:
        self.reducer, self.given, self.weight = reducer, given, weight
        self.results: list[np.ndarray] = []

    def start(self, x: Params, node: NodeInfo) -> None:
        self.x = x

    def turn(self, t: Turn) -> Effects[None]:
        got = yield from self.reducer.mean("g", self.given(t.round), t, weight=self.weight)
        self.results.append(got.flat)

    def resync(self, t: Turn) -> Effects[None]:
        yield from ()

    def state(self) -> State:
        return {**self.reducer.state()}

    def load(self, state: State) -> None:
        self.reducer.load(state)


def params(seed: int, **shapes: tuple[int, ...]) -> Params:
    rng = np.random.default_rng(seed)
    return Params.from_arrays({name: rng.normal(size=shape) for name, shape in shapes.items()})


def average(
    name: str,
    n: int,
    rounds: int,
    given: Callable[[int, int], Params],
    *,
    weights: list[float] | None = None,
    run: str = "run",
    **options: object,
) -> tuple[np.ndarray, list[Averaging], Memory]:
    """Means of all nodes and rounds (N, T, d), the rules, and the driver; `given` is a function of node and round."""
    rules = {
        NodeId(f"n{i}"): Averaging(
            catalog.make("reduce", name, **options), lambda t, i=i: given(i, t), weights[i] if weights else 1.0
        )
        for i in range(n)
    }
    graph = catalog.make("topology", "complete")
    driver = Memory(rules, {}, graph, given(0, 0), lr=lambda round: 0.1, run=run)  # type: ignore[arg-type]
    driver.run(rounds)
    return np.stack([np.stack(rule.results) for rule in rules.values()]), list(rules.values()), driver


SHAPES = {"w": (6, 9), "conv": (4, 3, 2, 2), "b": (6,), "s": ()}


def gradients(i: int, t: int) -> Params:
    return params(100 * t + i, **SHAPES)


def mean_of(n: int, t: int, weights: list[float] | None = None) -> np.ndarray:
    return np.average([gradients(i, t).flat for i in range(n)], axis=0, weights=weights)


# PowerSGD


def test_full_rank_is_the_mean_and_equal_on_all_ranks() -> None:
    weights = [1.0, 2.0, 0.5]
    got, rules, _ = average("powersgd", 3, 4, gradients, weights=weights, rank=6)
    assert (got == got[0]).all()
    for t in range(4):
        assert np.abs(got[0, t] - mean_of(3, t, weights)).max() < 1e-6
    # Each node's memory holds how its own gradient differs from all's; their weighted mean is nothing.
    lost = [rule.state()["lost:g"] for rule in rules]
    assert np.abs(np.average(lost, axis=0, weights=weights)).max() < 1e-5


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_all_ranks_hold_equal_bits_and_nothing_is_lost(rank: int) -> None:
    rounds = 12
    got, rules, _ = average("powersgd", 4, rounds, gradients, rank=rank)
    assert (got == got[0]).all()
    given = sum(mean_of(4, t) for t in range(rounds))
    left = np.mean([rule.state()["lost:g"] for rule in rules], axis=0)
    # Memories differ between nodes; their mean is what the sum of results lacks.
    assert np.abs(got[0].sum(axis=0) + left - given).max() < 2e-4


def low_rank(i: int, t: int) -> Params:
    """One fixed matrix with falling singular values, some noise, no vectors."""
    rng = np.random.default_rng(9)
    left, right = (np.linalg.qr(rng.normal(size=(20, 20)))[0] for _ in range(2))
    noise = np.random.default_rng(1000 + 100 * t + i).normal(size=(20, 20)) * 0.01
    return Params.from_arrays({"w": left @ np.diag(0.8 ** np.arange(20)) @ right + noise})


def test_without_feedback_or_warm_start_it_is_worse() -> None:
    rounds = 30
    truth = np.mean([[low_rank(i, t).flat for i in range(2)] for t in range(rounds)], axis=(0, 1))

    def error(**options: object) -> float:
        got, _, _ = average("powersgd", 2, rounds, low_rank, rank=2, **options)
        return float(np.linalg.norm(got[0].mean(axis=0) - truth) / np.linalg.norm(truth))

    assert error(feedback=False) > 3 * error() and error() < 0.15
    got, _, _ = average("powersgd", 2, rounds, low_rank, rank=2, feedback=False)
    cold, _, _ = average("powersgd", 2, rounds, low_rank, rank=2, feedback=False, warm_start=False)
    assert np.linalg.norm(cold[0] - truth, axis=1).mean() > 1.05 * np.linalg.norm(got[0] - truth, axis=1).mean()


def test_a_warm_start_finds_the_best_approximation() -> None:
    fixed = low_rank(0, 0)
    got, _, _ = average("powersgd", 2, 60, lambda i, t: fixed, rank=3, feedback=False)
    u, s, v = np.linalg.svd(fixed["w"].astype(np.float64))
    best = (u[:, :3] * s[:3]) @ v[:3]
    assert np.abs(got[0, -1].reshape(20, 20) - best).max() < 1e-4


def test_it_sends_rank_times_rows_and_columns() -> None:
    _, _, driver = average("powersgd", 3, 5, gradients, rank=2)
    per_node = 2 * (6 + 9) + 2 * (4 + 12) + 6 + 1
    # Sums are int64, with their weights beside them.
    assert 8 * per_node * 5 * 3 <= driver.counts.num_bytes <= 16 * per_node * 5 * 3 + 5 * 3 * 200


def test_matrices_that_would_not_become_smaller_are_averaged_as_they_are() -> None:
    got, rules, _ = average("powersgd", 3, 1, gradients, rank=2, min_gain=3.0)
    assert np.abs(got[0, 0] - mean_of(3, 0)).max() < 1e-6
    assert set(rules[0].state()) == {"lost:g"} and not rules[0].state()["lost:g"].any()


def test_a_matrix_that_vanishes_comes_back() -> None:
    def given(i: int, t: int) -> Params:
        return low_rank(i, t) if t > 1 else low_rank(i, t) * 0.0

    got, _, _ = average("powersgd", 2, 4, given, rank=2)
    assert not got[0, :2].any()
    assert np.linalg.norm(got[0, 3]) > 0.5


def test_its_state_is_all_it_needs() -> None:
    whole, _, _ = average("powersgd", 2, 6, low_rank, rank=2)
    rules = {
        NodeId(f"n{i}"): Averaging(catalog.make("reduce", "powersgd"), lambda t, i=i: low_rank(i, t)) for i in (0, 1)
    }
    _, first, _ = average("powersgd", 2, 3, low_rank, rank=2)
    graph = catalog.make("topology", "complete")
    driver = Memory(rules, {}, graph, low_rank(0, 0), lr=lambda round: 0.1)  # type: ignore[arg-type]
    driver.restore({me: rule.state() for me, rule in zip(rules, first, strict=True)}, round=3)
    driver.run(6)
    assert np.array_equal(np.stack(rules[NodeId("n0")].results), whole[0, 3:])


def test_a_value_that_changes_its_size_is_named() -> None:
    with pytest.raises(NodeFailed, match="'g' has 4 values now and had 6 before"):
        average("powersgd", 2, 2, lambda i, t: params(i, w=(2, 3) if t == 0 else (2, 2)))


# Over the air


def vector(i: int, t: int) -> Params:
    return params(i, w=(256,))


@pytest.mark.parametrize(("share", "noise", "n"), [(1.0, 0.5, 2), (0.5, 0.0, 3), (0.5, 0.5, 3), (0.25, 1.0, 6)])
def test_error_over_the_air_is_as_the_formula_says(share: float, noise: float, n: int) -> None:
    rounds, k = 160, int(share * 256)
    got, _, _ = average("over_the_air", n, rounds, vector, share=share, noise=noise, fading=False)
    assert (got == got[0]).all()
    truth = np.mean([vector(i, 0).flat for i in range(n)], axis=0).astype(np.float64)
    error = got[0] - truth
    # Without fading `a` follows from the largest of the workers' mixtures: its half octave.
    norms = mixture_norms(n, rounds, k)
    a = np.sqrt(k) * 2.0 ** (-np.ceil(2 * np.log2(norms)) / 2)
    expected = (256 / k - 1) * (truth @ truth) + (256 * noise**2 / (a * n) ** 2).mean()
    assert (error**2).sum(axis=1).mean() == pytest.approx(expected, rel=0.08)
    deviation = error.mean(axis=0) / (error.std(axis=0) / np.sqrt(rounds) + 1e-12)
    assert (deviation**2).mean() == pytest.approx(1, abs=0.35)


def mixture_norms(n: int, rounds: int, k: int) -> np.ndarray:
    """Of the largest mixture of each round, by the plain matrix."""
    matrix = np.ones((1, 1))
    while len(matrix) < 256:
        matrix = np.kron(np.array([[1, 1], [1, -1]]), matrix)
    largest = []
    for t in range(rounds):
        turn = Turn("run", t, NodeId("n0"), 0.1, frozenset(), frozenset(), {}, (), {})
        signs = random_signs(turn.shared_rng("g/signs"), 256)
        mixtures = [matrix[:k] @ (signs * vector(i, t).flat) / np.sqrt(k) for i in range(n)]
        largest.append(max(np.linalg.norm(v) for v in mixtures))
    return np.array(largest)


def test_the_whole_channel_without_noise_is_the_mean() -> None:
    weights = [1.0, 3.0, 2.0]
    got, _, _ = average("over_the_air", 3, 3, gradients, weights=weights, share=1.0, noise=0.0, fading=False)
    for t in range(3):
        assert np.abs(got[0, t] - mean_of(3, t, weights)).max() < 1e-5


def test_nodes_that_fade_are_silent_and_the_mean_stays_right() -> None:
    def one(i: int, t: int) -> Params:
        return Params.from_arrays({"w": np.eye(4)[i] * 4})

    got, _, _ = average("over_the_air", 4, 150, one, share=1.0, noise=0.0, cutoff=0.7)
    heard = np.rint(got[0] / np.maximum(got[0].max(axis=1, keepdims=True), 1e-9))
    # P(|h| >= 0.7) = exp(-0.49) = 0.61, and a little for rounds in which all fade.
    assert heard.mean() == pytest.approx(np.exp(-0.49), abs=0.06)
    assert np.allclose(got[0].sum(axis=1), 4, atol=1e-4)
    assert got[0].mean(axis=0) == pytest.approx(1, abs=0.3)


def test_traffic_of_a_node_does_not_depend_on_their_number() -> None:
    per_node = []
    for n in (2, 4, 8):
        _, _, driver = average("over_the_air", n, 2, vector, fading=False)
        per_node.append(driver.counts.num_bytes / n)
    assert max(per_node) == min(per_node) < 2 * 2 * 8 * (128 + 256 + 4)


@pytest.mark.parametrize("name", ["powersgd", "over_the_air"])
def test_zeros_and_nothing(name: str) -> None:
    options = {"noise": 0.0} if name == "over_the_air" else {}
    got, _, _ = average(name, 2, 2, lambda i, t: Params.from_arrays({"w": np.zeros((3, 2))}), **options)
    assert not got.any()
    got, _, _ = average(name, 2, 2, lambda i, t: Params.from_arrays({"w": np.zeros((0, 2))}), **options)
    assert got.shape == (2, 2, 0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("powersgd", {"rank": 0}),
        ("powersgd", {"min_gain": -1.0}),
        ("over_the_air", {"share": 0.0}),
        ("over_the_air", {"power": 0.0}),
        ("over_the_air", {"noise": float("nan")}),
        ("over_the_air", {"cutoff": -1.0}),
    ],
)
def test_options_out_of_range(name: str, options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=name):
        catalog.make("reduce", name, **options)
