"""Strategies against their formulas, and against one another where theory makes them equal."""

from __future__ import annotations

import numpy as np
import pytest
from quadratics import Quadratic

from tierline.core import catalog
from tierline.core.arrays import Params
from tierline.core.errors import ConfigError, NodeFailed
from tierline.core.types import NodeId
from tierline.learning.cast import SERVER, federation, worker_ids
from tierline.learning.compute import Job
from tierline.learning.driver.memory import Memory
from tierline.learning.driver.world import LinkSpec, World
from tierline.learning.rule import Rule
from tierline.learning.strategy.fednova import _effective_steps

NUM, DIM, LR = 5, 6, 0.1
RNG = np.random.default_rng(7)
X0 = RNG.normal(size=DIM).astype(np.float32)
A = RNG.uniform(0.3, 1.5, (NUM, DIM))
B = RNG.normal(size=(NUM, DIM))
SIZES = np.array([1, 2, 3, 4, 5])
P = SIZES / SIZES.sum()


def run(
    name: str,
    rounds: int,
    *,
    steps: tuple[int, ...] = (4,) * NUM,
    sizes: np.ndarray = SIZES,
    noise: float = 0.0,
    job: Job | None = None,
    world: World | None = None,
    lr: float = LR,
    **options: object,
) -> tuple[np.ndarray, dict[NodeId, Rule], Memory]:
    """The server's model after so many turns."""
    rules = federation(name, NUM, options)
    trainers = {
        me: Quadratic(A[i], B[i], num_samples=int(sizes[i]), steps_per_epoch=steps[i], noise=noise)
        for i, me in enumerate(worker_ids(NUM))
    }
    star = catalog.make("topology", "star")
    x = Params.from_arrays({"x": X0})
    driver = Memory(rules, trainers, star, x, lr=lambda round: lr, job=job, world=world)
    driver.run(rounds, of=[SERVER] if rules[SERVER].traits.asynchronous else None)
    return rules[SERVER].x.flat, rules, driver


def local(x: np.ndarray, i: int, steps: int, mu: float = 0.0, c: np.ndarray | float = 0.0) -> np.ndarray:
    y = x.copy()
    for _ in range(steps):
        y = y - LR * (A[i] * (y - B[i]) + mu * (y - x) + c)
    return y


def fitted(x: np.ndarray, steps: int = 4, mu: float = 0.0) -> np.ndarray:
    return np.stack([local(x, i, steps, mu) for i in range(NUM)])


def close(x: np.ndarray, y: np.ndarray, tolerance: float = 2e-6) -> bool:
    return bool(np.abs(x - y).max() < tolerance)


def test_fedavg_is_the_weighted_mean_of_local_models() -> None:
    y = X0.astype(np.float64)
    for _ in range(5):
        y = P @ fitted(y)
    assert close(run("fedavg", 5)[0], y)


def test_fedavg_with_one_full_step_is_gradient_descent_on_the_pooled_samples() -> None:
    y = X0.astype(np.float64)
    for _ in range(20):
        y = y - LR * P @ (A * (y - B))
    assert close(run("fedavg", 20, steps=(1,) * NUM)[0], y)


def test_a_share_of_the_workers_takes_part_and_only_they_are_bothered() -> None:
    _, _, driver = run("fedavg", 10, share=0.4)
    assert driver.counts.num_messages == 10 * 2 * 2
    assert set(driver.rounds.values()) == {10}
    rules = federation("fedavg", NUM, {"share": 0.4})
    trainers = {me: Quadratic(A[i], B[i]) for i, me in enumerate(worker_ids(NUM))}
    x = Params.from_arrays({"x": X0})
    driver = Memory(rules, trainers, catalog.make("topology", "star"), x, lr=lambda round: LR)
    driver.run(100)
    counts = np.array([trainer.num_calls for trainer in trainers.values()])
    assert counts.sum() == 200 and counts.min() > 20


def test_a_round_goes_on_without_the_slow_and_takes_no_late_update() -> None:
    slow = worker_ids(NUM)[2]
    world = World(compute_s=0.1, compute_of={slow: 50.0})
    x, _, _ = run("fedavg", 1, world=world, within_s=1.0)
    others = [i for i in range(NUM) if i != 2]
    expected = (P[others] / P[others].sum()) @ fitted(X0.astype(np.float64))[others]
    assert close(x, expected)
    assert close(run("fedavg", 1, world=world, quorum=4)[0], expected)


def test_fedprox_with_mu_0_is_fedavg_and_follows_its_formula() -> None:
    assert np.array_equal(run("fedprox", 5, mu=0.0, noise=0.1)[0], run("fedavg", 5, noise=0.1)[0])
    y = X0.astype(np.float64)
    for _ in range(5):
        y = P @ fitted(y, mu=0.7)
    assert close(run("fedprox", 5, mu=0.7)[0], y)


@pytest.mark.parametrize("form", ["adam", "yogi", "adagrad"])
def test_fedopt_is_its_formula(form: str) -> None:
    x, m, v = X0.astype(np.float64), np.zeros(DIM), np.full(DIM, 1e-6)
    for _ in range(8):
        d = P @ fitted(x) - x
        m = 0.9 * m + 0.1 * d
        if form == "adam":
            v = 0.99 * v + 0.01 * d**2
        elif form == "yogi":
            v = v - 0.01 * d**2 * np.sign(v - d**2)
        else:
            v = v + d**2
        x = x + 0.05 * m / (np.sqrt(v) + 1e-3)
    assert close(run("fedopt", 8, form=form, server_lr=0.05)[0], x, 1e-5)


@pytest.mark.parametrize("job", [Job(), Job(momentum=0.9), Job(proximal=0.5)])
def test_fednova_is_fedavg_where_all_take_equal_steps(job: Job) -> None:
    one, other = run("fednova", 6, job=job, noise=0.1)[0], run("fedavg", 6, job=job, noise=0.1)[0]
    assert close(one, other)


def test_fednova_does_not_let_long_runs_pull_the_optimum() -> None:
    # With small steps FedAvg goes to the optimum weighted by p_i tau_i, FedNova to that weighted by p_i.
    steps = (1, 2, 4, 8, 16)

    def optimum(weights: np.ndarray) -> np.ndarray:
        found: np.ndarray = (weights[:, None] * A * B).sum(0) / (weights[:, None] * A).sum(0)
        return found

    nova = run("fednova", 400, steps=steps, lr=0.01)[0]
    avg = run("fedavg", 400, steps=steps, lr=0.01)[0]
    right, pulled = optimum(P), optimum(P * np.array(steps))
    assert np.abs(right - pulled).max() > 0.05
    assert np.abs(nova - right).max() < 0.3 * np.abs(avg - right).max()
    assert np.abs(avg - pulled).max() < 0.3 * np.abs(avg - right).max()


@pytest.mark.parametrize("job", [Job(lr=LR), Job(lr=LR, momentum=0.8), Job(lr=LR, proximal=0.5)])
def test_effective_steps_are_those_of_the_unrolled_optimiser(job: Job) -> None:
    # A constant gradient of 1 moves the model by lr times the sum of its weights.
    y, m = 0.0, 0.0
    for _ in range(7):
        m = job.momentum * m + 1.0 + job.proximal * y
        y -= job.lr * m
    assert _effective_steps(job, 7) == pytest.approx(-y / job.lr)
    with pytest.raises(ConfigError, match="fednova: knows its weights for"):
        _effective_steps(Job(optimizer="adam"), 7)


def test_scaffold_is_its_formula_with_a_share_of_the_workers() -> None:
    share = 0.6
    x, c, c_k = X0.astype(np.float64), np.zeros(DIM), np.zeros((NUM, DIM))
    _, _, driver = run("scaffold", 1, share=share)
    assert driver.counts.num_messages == 6
    calls: list[list[int]] = []
    rules = federation("scaffold", NUM, {"share": share})
    trainers = {me: Quadratic(A[i], B[i], steps_per_epoch=4) for i, me in enumerate(worker_ids(NUM))}
    start = Params.from_arrays({"x": X0})
    driver = Memory(rules, trainers, catalog.make("topology", "star"), start, lr=lambda round: LR)
    for round in range(6):
        before = [t.num_calls for t in trainers.values()]
        driver.run(round + 1)
        calls.append([i for i, t in enumerate(trainers.values()) if t.num_calls > before[i]])
    for group in calls:
        ys = {i: local(x, i, 4, c=c - c_k[i]) for i in group}
        new = {i: c_k[i] - c + (x - ys[i]) / (4 * LR) for i in group}
        change = sum(new[i] - c_k[i] for i in group)
        for i in group:
            c_k[i] = new[i]
        x = x + sum(ys[i] - x for i in group) / len(group)
        c = c + change / NUM
    assert all(len(group) == 3 for group in calls) and len(set(map(tuple, calls))) > 1
    assert close(rules[SERVER].x.flat, x, 1e-5)


def test_scaffold_reaches_the_optimum_where_fedavg_does_not() -> None:
    equal = np.ones(NUM, int)
    optimum = (A * B).sum(0) / A.sum(0)
    scaffold = run("scaffold", 150, sizes=equal, steps=(10,) * NUM)[0]
    fedavg = run("fedavg", 150, sizes=equal, steps=(10,) * NUM)[0]
    assert np.abs(scaffold - optimum).max() < 1e-4 < 1e-2 < np.abs(fedavg - optimum).max()
    with pytest.raises(NodeFailed, match="scaffold: local steps must be sgd without momentum"):
        run("scaffold", 1, job=Job(momentum=0.9))


def test_dynamic_averaging_at_0_is_periodic_averaging_bit_for_bit() -> None:
    job = Job(num_steps=3)
    for rounds in (1, 5, 12):
        dynamic, rules, _ = run("dynamic_averaging", rounds, delta=0.0, noise=0.3, job=job)
        periodic = run("fedavg", rounds, noise=0.3, job=job)[0]
        assert np.array_equal(dynamic, periodic)
        for me in worker_ids(NUM):
            assert np.array_equal(rules[me].x.flat, periodic)


def test_dynamic_averaging_bounds_the_drift_and_moves_fewer_models_as_delta_grows() -> None:
    moved = []
    for delta in (0.0, 0.1, 0.3, 1.0, 3.0, 1e9):
        _, rules, driver = run("dynamic_averaging", 40, delta=delta, noise=0.5, job=Job(num_steps=2))
        r = rules[SERVER].x.flat
        drift = np.mean([np.square(rules[me].x.flat - r).sum() for me in worker_ids(NUM)])
        assert drift <= delta + 1e-6
        assert all(np.array_equal(rules[me].state()["r"], r) for me in worker_ids(NUM))
        moved.append(driver.counts.num_bytes)
    assert moved == sorted(moved, reverse=True) and moved[0] > 4 * moved[4] > 0 and moved[-1] == 0


def test_dynamic_averaging_may_balance_a_few_without_all() -> None:
    seen = set()
    _, rules, driver = run("dynamic_averaging", 1, delta=0.3, noise=0.5, job=Job(num_steps=2))
    for round in range(2, 60):
        before = {me: rule.state()["r"] for me, rule in rules.items() if me != SERVER}
        num_bytes = driver.counts.num_bytes
        driver.run(round)
        full = any(not np.array_equal(before[me], rules[me].state()["r"]) for me in before)
        seen.add((driver.counts.num_bytes > num_bytes, full))
    assert seen == {(False, False), (True, False), (True, True)}


def test_dynamic_averaging_takes_all_after_as_many_violations_as_workers() -> None:
    # Only the first worker moves, and at random, so that two others nearly always balance it.
    ids = worker_ids(NUM)
    zeros = np.zeros(DIM)
    trainers = {me: Quadratic(zeros, zeros, noise=2.0 if me == ids[0] else 0.0) for me in ids}
    rules = federation("dynamic_averaging", NUM, {"delta": 1.0})
    start = Params.from_arrays({"x": np.zeros(DIM)})
    driver = Memory(rules, trainers, catalog.make("topology", "star"), start, lr=lambda round: 0.7)
    counts, num_full = [], 0
    for round in range(1, 41):
        before = rules[SERVER].x
        driver.run(round)
        num_full += rules[SERVER].x is not before
        counts.append(int(rules[SERVER].state()["num_violations"]))
    assert max(counts) == NUM - 1 and num_full >= 3


def test_fedbuff_with_all_in_the_buffer_and_equal_speeds_is_fedavg() -> None:
    equal = np.ones(NUM, int)
    world = World(compute_s=1.0, link=LinkSpec(0.1))
    one = run("fedbuff", 6, buffer=NUM, wait=True, sizes=equal, noise=0.2, world=world)[0]
    other = run("fedavg", 6, sizes=equal, noise=0.2, world=world)[0]
    assert close(one, other)


def test_fedbuff_weighs_by_staleness_and_does_not_wait_for_the_slow() -> None:
    ids = worker_ids(NUM)
    # The first is quick, the others never come within the run.
    world = World(compute_s=1e3, compute_of={ids[0]: 1.0})
    x, _, driver = run("fedbuff", 3, buffer=2, staleness=1.0, server_lr=0.5, world=world)
    y, sent = X0.astype(np.float64), []
    have, version = y, 0  # what the worker trains on
    for turn in range(3):
        total = np.zeros(DIM)
        for place in range(2):
            total += (local(have, 0, 4) - have) / (1 + turn - version)
            sent.append(turn - version)
            if place == 0:
                have, version = y, turn
        y = y + 0.5 / 2 * total
        have, version = y, turn + 1
    assert close(x, y)
    assert sent == [0, 0, 0, 0, 0, 0] and driver.time_s == pytest.approx(24.0)
    uneven = World(compute_s=1.0, compute_of={ids[4]: 7.9})
    fresh = run("fedbuff", 12, buffer=2, staleness=0.0, world=uneven)[0]
    assert not close(fresh, run("fedbuff", 12, buffer=2, staleness=0.5, world=uneven)[0])


def test_wrong_options_are_refused() -> None:
    for name, options, message in (
        ("fedavg", {"share": 0.0}, r"share = 0\.0 must be above 0"),
        ("fedopt", {"form": "sgd"}, "fedopt: form = 'sgd'; valid"),
        ("fedopt", {"tau": 0.0}, "fedopt: server_lr and tau must be above 0"),
        ("dynamic_averaging", {"delta": -1.0}, r"delta = -1\.0 must be at least 0"),
        ("fedbuff", {"buffer": 0}, "buffer must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            federation(name, 2, options)
