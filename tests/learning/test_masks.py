"""Sparse training and mask tuning against their formulas."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from quadratics import Quadratic

from tierline.core import catalog
from tierline.core.arrays import Params
from tierline.core.errors import BadFrame, ConfigError
from tierline.core.types import NodeId
from tierline.learning.cast import SERVER, federation, worker_ids
from tierline.learning.compute import Job
from tierline.learning.driver.memory import Memory
from tierline.learning.rule import Rule
from tierline.learning.strategy._masks import from_bits

NUM, LR = 3, 0.1
RNG = np.random.default_rng(5)
W0, B0 = RNG.normal(size=(4, 5)), RNG.normal(size=5)
DIM = W0.size + B0.size
A, B = RNG.uniform(0.3, 1.5, (NUM, DIM)), RNG.normal(size=(NUM, DIM))
SHARE = np.array([1, 2, 3]) / 6
START = np.concatenate([W0.ravel(), B0])


def run(name: str, rounds: int, *, num: int = NUM, job: Job | None = None, **options: object) -> tuple[Rule, Memory]:
    rules = federation(name, num, options)
    trainers = {me: Quadratic(A[i], B[i], num_samples=i + 1, steps_per_epoch=4) for i, me in enumerate(worker_ids(num))}
    x = Params.from_arrays({"w": W0, "b": B0})
    star = catalog.make("topology", "star")
    driver = Memory(rules, trainers, star, x, lr=lambda round: LR, job=job)
    driver.run(rounds)
    return rules[SERVER], driver


def pruned(w: np.ndarray, num_gone: int) -> np.ndarray:
    mask = np.ones(DIM)
    mask[np.argsort(np.abs(w[: W0.size]))[:num_gone]] = 0
    return mask


def test_pruning_with_feedback_is_its_formula() -> None:
    job = Job(momentum=0.5, weight_decay=0.01)
    rule, _ = run("pruning_feedback", 12, job=job, sparsity=0.6, until=8, every=2)
    w, u, mask = START.copy(), np.zeros(DIM), np.ones(DIM)
    masks = []
    for t in range(12):
        if t <= 8 and t % 2 == 0:
            mask = pruned(w, int(0.6 * (1 - (1 - t / 8) ** 3) * W0.size))
            masks.append(mask)
        g = SHARE @ (A * (mask * w - B))
        u = 0.5 * u + g + 0.01 * w
        w = w - LR * u
    assert np.abs(rule.x.flat - mask * w).max() < 1e-5
    assert (rule.x.flat[: W0.size] == 0).sum() == 12 and (rule.x.flat[W0.size :] != 0).all()
    assert any(((new == 1) & (old == 0)).any() for old, new in itertools.pairwise(masks))  # some came back


def test_pruning_nothing_is_synchronous_sgd_bit_for_bit() -> None:
    rule, _ = run("pruning_feedback", 6, sparsity=0.0)
    other, _ = run("sync_sgd", 6)
    assert np.array_equal(rule.x.flat, other.x.flat)


def test_a_sparse_model_costs_its_mask_and_what_stays() -> None:
    dense, sparse = (run("pruning_feedback", 4, sparsity=s, until=1, every=1)[1].counts.num_bytes for s in (0.0, 0.8))
    assert dense - sparse == 3 * NUM * 16 * 4  # three rounds, 16 of 20 weights


def test_mask_tuning_of_one_worker_is_its_formula() -> None:
    rule, driver = run("mask_tuning", 5, num=1, job=Job(epochs=1), sparsity=0.3, spread=0.5)
    weights = Params.from_arrays({"w": W0, "b": B0}).flat.astype(np.float64)
    first, _ = run("mask_tuning", 0, num=1, sparsity=0.3, spread=0.5)
    scores = first.scores.flat.astype(np.float64)  # type: ignore[attr-defined]
    assert scores.min() >= 0 and scores.max() < 0.5
    tau = np.float32(0.15)
    for _ in range(5 * 4):
        keep = (scores >= tau) | (np.arange(DIM) >= W0.size)
        scores = scores - LR * A[0] * (weights * keep - B[0]) * weights
    keep = (scores >= tau) | (np.arange(DIM) >= W0.size)
    assert np.array_equal(rule.x.flat != 0, keep)
    assert np.array_equal(rule.x.flat[keep], weights[keep].astype(np.float32))  # the weights are what they were
    assert driver.counts.num_bytes == 5 * (3 + 3 + 8)  # 20 bits each way, and a number of samples


def test_most_samples_decide_a_mask() -> None:
    rule, driver = run("mask_tuning", 40, sparsity=0.3, spread=0.5)
    votes = np.zeros(DIM)
    for share, me in zip(SHARE, worker_ids(NUM), strict=True):
        votes += share * np.where(driver.states()[me]["scores"] >= np.float32(0.15), 1, -1)
    assert np.array_equal(rule.x.flat[: W0.size] != 0, votes[: W0.size] >= 0)


@pytest.mark.parametrize("mask", [None, 3, np.zeros(2, np.uint8), np.zeros(3, np.int8)])
def test_a_mask_of_another_size_is_refused(mask: object) -> None:
    with pytest.raises(BadFrame, match=r"`mask` must hold 20 bits, as uint8\[3\]"):
        from_bits({"mask": mask} if mask is not None else {}, 20)  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pruning_feedback", {"sparsity": 1.0}, "sparsity = 1.0 must be at least 0 and below 1"),
        ("pruning_feedback", {"every": 0}, "every = 0 must be at least 1"),
        ("mask_tuning", {"sparsity": 0.0}, "sparsity = 0.0 must be above 0"),
        ("mask_tuning", {"spread": 0.0}, "spread = 0.0 must be above 0"),
    ],
)
def test_options_out_of_range(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        federation(name, 1, options)[NodeId("worker-0")]
