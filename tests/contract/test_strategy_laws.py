"""Laws of the room `strategy`: a server and its workers in a star."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

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
from tierline.learning.rule import NodeInfo, Rule, State

# A DDNN is cut by views, which a quadratic has none of: see tests/models/test_tiers.py.
NAMES = tuple(name for name in catalog.names("strategy") if name != "ddnn")
SYNCHRONOUS = [name for name in NAMES if not catalog.load("strategy", name, "Server").traits.asynchronous]
NUM, DIM = 6, 7
A = np.random.default_rng(1).uniform(0.5, 1.5, (NUM, DIM))
B = np.random.default_rng(2).normal(size=(NUM, DIM))
# Options under which a strategy moves fast enough, or at all, in so small a run.
QUICK: dict[str, dict[str, object]] = {
    "fedbuff": {"buffer": 3},
    "dynamic_averaging": {"delta": 0.01},
    "pruning_feedback": {"sparsity": 0.0},
}


def model() -> Params:
    x = np.random.default_rng(0).normal(size=DIM)
    return Params.from_arrays({"w": x[:6].reshape(2, 3), "b": x[6:]})


def data(*, alike: bool = False) -> dict[NodeId, Quadratic]:
    which = [0] * NUM if alike else range(NUM)
    workers = {
        me: Quadratic(A[i], B[i], num_samples=1 + k, noise=0.0 if alike else 0.1)
        for k, (me, i) in enumerate(zip(worker_ids(NUM), which, strict=True))
    }
    return workers | {SERVER: Quadratic(A[0], B[0])}  # what the root of a cut model computes with


def start(
    name: str, *, world: World | None = None, trainers: Mapping[NodeId, Quadratic] | None = None, **options: object
) -> tuple[Memory, dict[NodeId, Rule]]:
    rules = federation(name, NUM, QUICK.get(name, {}) | options)
    star = catalog.make("topology", "star")
    job = Job(epochs=2)
    return Memory(rules, trainers or data(), star, model(), lr=lambda round: 0.1, job=job, world=world), rules


def go(driver: Memory, rules: Mapping[NodeId, Rule], rounds: int) -> None:
    driver.run(rounds, of=[SERVER] if rules[SERVER].traits.asynchronous else None)


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def all_same(one: Mapping[NodeId, Rule], other: Mapping[NodeId, Rule]) -> bool:
    return all(same(one[me].state(), other[me].state()) for me in one)


@pytest.mark.parametrize("part", ["Server", "Worker"])
@pytest.mark.parametrize("name", NAMES)
def test_a_half_copies_what_it_keeps(name: str, part: str) -> None:
    x, half = model(), catalog.make("strategy", name, part)
    before = x.flat.copy()
    half.start(x, NodeInfo(NodeId("a"), (NodeId("a"),), frozenset(), frozenset()))
    state = half.state()
    saved = {key: np.copy(value) for key, value in state.items()}
    for _ in range(2):
        for value in vars(half).values():
            if isinstance(value, Params) and value is not x:
                value.flat += 1
        assert np.array_equal(x.flat, before)
        assert all(np.array_equal(state[key], saved[key]) for key in saved)
        half.load(state)
        assert same(half.state(), state)


@pytest.mark.parametrize("name", NAMES)
def test_a_server_keeps_the_model(name: str) -> None:
    _, rules = start(name)
    assert "x" in rules[SERVER].state()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "mask_tuning"])  # whose weights stay
def test_workers_that_agree_are_followed_to_their_optimum(name: str) -> None:
    driver, rules = start(name, trainers=data(alike=True))
    go(driver, rules, 60)
    gap = np.abs(rules[SERVER].x.flat - B[0]).max() / np.abs(model().flat - B[0]).max()
    assert gap < 0.1


@pytest.mark.parametrize("name", NAMES)
def test_equal_arguments_give_equal_bits(name: str) -> None:
    first, rules = start(name, world=World(compute_s=1.0, link=LinkSpec(0.01)))
    second, others = start(name, world=World(compute_s=1.0, link=LinkSpec(0.01)))
    go(first, rules, 5)
    go(second, others, 5)
    assert all_same(rules, others) and first.time_s == second.time_s > 0


@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_time_changes_no_bit(name: str) -> None:
    plain, rules = start(name)
    plain.run(4)
    ids = worker_ids(NUM)
    slow = {(SERVER, ids[1]): LinkSpec(2.0, 1e3), (ids[3], SERVER): LinkSpec(0.0, 10.0)}
    timed, others = start(name, world=World(compute_s=0.1, compute_of={ids[4]: 3.0}, link_of=slow))
    timed.run(4)
    assert all_same(rules, others)


@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_a_run_taken_up_again_from_its_states_is_the_same_run(name: str) -> None:
    whole, rules = start(name)
    whole.run(6)
    first, _ = start(name)
    first.run(3)
    second, resumed = start(name)
    second.restore(first.states(), round=3)
    second.run(6)
    assert all_same(rules, resumed)


@pytest.mark.parametrize("fails_at", [1, 3])
@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_a_turn_that_fails_leaves_every_state_as_before(name: str, fails_at: int) -> None:
    expected, rules = start(name)
    expected.run(5)
    trainers = data()
    trainers[worker_ids(NUM)[2]].fails_at = fails_at
    world = World(compute_s=1e-3, compute_of={worker_ids(NUM)[2]: 0.1}, link=LinkSpec(0.01))
    driver, again = start(name, trainers=trainers, world=world)
    with pytest.raises(NodeFailed, match=r"worker-2, turn \d: OSError: the disk is full"):
        driver.run(5)
    for me, rule in again.items():
        reference, its_rules = start(name)
        reference.run(driver.rounds[me])
        assert same(rule.state(), its_rules[me].state())
    driver.run(5)
    assert all_same(rules, again)


def test_an_option_no_half_knows_is_refused() -> None:
    with pytest.raises(ConfigError, match="strategy 'fedavg': no option 'shar'; nearest is \"share\""):
        federation("fedavg", 2, {"shar": 0.5})


@pytest.mark.parametrize("name", NAMES)
def test_options_that_both_halves_know_have_one_default(name: str) -> None:
    halves = catalog.parts("strategy", name)
    assert halves.keys() == {"Server", "Worker"}
    server, worker = (inspect.signature(cls).parameters for cls in halves.values())
    assert all(server[key].default == worker[key].default for key in server.keys() & worker.keys())
