"""Laws of the learning rooms, and of the driver that every rule relies on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from quadratics import Quadratic
from scripts import Script

from tierline.core import catalog
from tierline.core.arrays import Params
from tierline.core.errors import ConfigError, NodeFailed
from tierline.core.types import NodeId
from tierline.learning.driver.memory import Memory
from tierline.learning.driver.world import LinkSpec, World
from tierline.learning.effects import Effects, exchange, reduce
from tierline.learning.errors import Deadlock
from tierline.learning.rule import NodeInfo, Rule, Turn

GOSSIP, TOPOLOGIES, REDUCERS = (catalog.names(room) for room in ("gossip", "topology", "reduce"))
# How each gossip rule is built where messages may vanish; a rule that is not named here never tolerates loss.
LOSSY = {name: {"within_s": 0.5} for name in ("d_psgd", "relay", "sgp")}
# A rule that needs a tree, and the graphs of one size only.
TREES, HOME = ("binary_tree", "chain", "star"), {"tierline.learning.gossip.relay": "chain"}
FIXED = {"dyck": 32, "petersen": 10, "social": 32}
SIZES = (1, 2, 3, 4, 5, 8, 16)
SIZED = [(name, n) for name in TOPOLOGIES for n in ((FIXED[name],) if name in FIXED else SIZES)]
# Every topology with one rule, and every rule with a few topologies that differ most.
SHAPES = ("ring", "star", "exponential")
MIXED = [(name, shape) for name in GOSSIP for shape in (TOPOLOGIES if name == "d_psgd" else SHAPES)]
# Float32 rounding moves the mean more where a rule tracks its own moves: 1 / (1 - momentum - mu) times.
DRIFT = {"d2": 3e-6, "gut": 2e-5, "qg_gut": 1e-4}
# These agree later; deep_squeeze never wholly, since what it compresses does not become small.
ROUNDS = {"d2": 150, "qg_gut": 150}
SPREAD = {"deep_squeeze": 0.2}
DIM = 7


def model(seed: int = 0) -> Params:
    x = np.random.default_rng(seed).normal(size=DIM)
    return Params.from_arrays({"w": x[:6].reshape(2, 3), "b": x[6:]})


def node_ids(n: int) -> list[NodeId]:
    return [NodeId(f"n{i:02}") for i in range(n)]


def trainers(n: int, *, seed: int = 1) -> dict[NodeId, Quadratic]:
    rng = np.random.default_rng(seed)
    return {me: Quadratic(rng.uniform(0.5, 1.5, DIM), rng.normal(size=DIM)) for me in node_ids(n)}


def start(
    make: Callable[[], Rule],
    n: int = 5,
    *,
    topology: str | None = None,
    lr: float = 0.1,
    world: World | None = None,
    data: dict[NodeId, Quadratic] | None = None,
) -> tuple[Memory, dict[NodeId, Rule]]:
    rules = {me: make() for me in node_ids(n)}
    data = data or trainers(n)
    home = HOME.get(type(next(iter(rules.values()))).__module__, "ring")
    graph = catalog.make("topology", topology or home)
    batch = {"labels": np.zeros(1, np.int64)}
    driver = Memory(rules, data, graph, model(), lr=lambda round: lr, batches=lambda me, round: batch, world=world)
    return driver, rules


def scatter(driver: Memory, rules: dict[NodeId, Rule]) -> np.ndarray:
    """Give every node a model of its own, which its neighbours know; returns their mean."""
    for i, rule in enumerate(rules.values()):
        x, state = model(seed=100 + i).flat, dict(rule.state())
        rule.load({**state, **{name: x for name in ("x", "replicas/mine") if name in state}})
    driver.resync()
    return np.asarray(models(rules).mean(axis=0, dtype=np.float64))


def models(rules: dict[NodeId, Rule]) -> np.ndarray:
    return np.stack([rule.x.flat for rule in rules.values()])


def gossip(name: str, **options: object) -> Callable[[], Rule]:
    return lambda: catalog.make("gossip", name, **options)


# Topologies


def is_directed(name: str) -> bool:
    topology, n = catalog.make("topology", name), FIXED.get(name, 8)
    return any(topology.peers_in(n, i, t) != topology.peers_out(n, i, t) for i in range(n) for t in range(8))


@pytest.mark.parametrize(("name", "n"), SIZED)
def test_mixing_is_doubly_stochastic_and_follows_the_peers(name: str, n: int) -> None:
    topology = catalog.make("topology", name)
    period = topology.period(n)
    for t in range(period):
        w = topology.mixing_matrix(n, t)
        assert w.dtype == np.float64 and w.shape == (n, n)
        assert (w >= 0).all() and (is_directed(name) or np.array_equal(w, w.T))
        assert np.abs(w.sum(axis=0) - 1).max() < 1e-14 and np.abs(w.sum(axis=1) - 1).max() < 1e-14
        assert np.array_equal(w, topology.mixing_matrix(n, t + period))
        for i in range(n):
            others = [j for j in range(n) if j != i]
            assert topology.peers_in(n, i, t) == tuple(j for j in others if w[i, j] > 0)
            assert topology.peers_out(n, i, t) == tuple(j for j in others if w[j, i] > 0)


@pytest.mark.parametrize(("name", "n"), SIZED)
def test_a_period_of_mixing_brings_all_nearer(name: str, n: int) -> None:
    topology = catalog.make("topology", name)
    product = np.eye(n)
    for t in range(topology.period(n)):
        product = topology.mixing_matrix(n, t) @ product
    assert n == 1 or np.linalg.norm(product - 1 / n, ord=2) < 1 - 1e-3


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_topology_without_nodes_is_refused(name: str) -> None:
    topology = catalog.make("topology", name)
    with pytest.raises(ConfigError, match=name):
        topology.mixing_matrix(0)
    with pytest.raises(ConfigError, match=name):
        topology.peers_in(0, 0)
    with pytest.raises(ConfigError, match=name):
        topology.peers_out(0, 0)


# Gossip rules


def skip_unless_fit(name: str, topology: str) -> None:
    """A rule need not work where edges have one direction, or where neighbours that it remembers change."""
    traits = catalog.make("gossip", name).traits
    if name == "relay" and topology not in TREES:
        pytest.skip("needs a tree")
    if name == "ngm" and topology in ("star", "chain"):
        pytest.skip("needs equally many neighbours everywhere")
    if is_directed(topology) and not traits.directed:
        pytest.skip("needs both directions of an edge")
    if catalog.make("topology", topology).period(8) > 1 and traits.per_edge_state:
        pytest.skip("remembers its neighbours")


@pytest.mark.parametrize("name", GOSSIP)
def test_a_rule_copies_what_it_keeps(name: str) -> None:
    x, rule = model(), catalog.make("gossip", name)
    before = x.flat.copy()
    rule.start(x, NodeInfo(NodeId("a"), (NodeId("a"),), frozenset(), frozenset()))
    rule.x.flat += 1
    assert np.array_equal(x.flat, before)
    state = rule.state()
    saved = {key: np.copy(value) for key, value in state.items()}
    rule.x.flat += 1
    assert all(np.array_equal(state[key], saved[key]) for key in saved)
    rule.load(state)
    rule.x.flat += 1
    assert all(np.array_equal(state[key], saved[key]) for key in saved)


@pytest.mark.parametrize(("name", "topology"), MIXED)
def test_what_a_rule_says_it_conserves(name: str, topology: str) -> None:
    skip_unless_fit(name, topology)
    driver, rules = start(gossip(name), FIXED.get(topology, 8), topology=topology, lr=0.0)
    if next(iter(rules.values())).traits.conserves != "mean":
        pytest.skip("claims no conserved mean")
    mean = scatter(driver, rules)
    spread = np.ptp(models(rules), axis=0).max()
    driver.run(ROUNDS.get(name, 60))
    assert np.abs(models(rules).mean(axis=0, dtype=np.float64) - mean).max() < DRIFT.get(name, 1e-6)
    assert np.ptp(models(rules), axis=0).max() < SPREAD.get(name, 0.1) * spread


@pytest.mark.parametrize(("name", "topology"), MIXED)
def test_the_mean_model_comes_near_the_optimum(name: str, topology: str) -> None:
    skip_unless_fit(name, topology)
    n = FIXED.get(topology, 5)
    data = trainers(n)
    driver, rules = start(gossip(name), n, topology=topology, lr=0.04, data=data)
    driver.run(240)
    a, b = np.stack([t.a for t in data.values()]), np.stack([t.b for t in data.values()])
    optimum = (a * b).sum(axis=0) / a.sum(axis=0)
    distance = np.abs(model().flat - optimum).max()
    assert np.abs(models(rules).mean(axis=0) - optimum).max() < 0.05 * distance


@pytest.mark.parametrize("name", GOSSIP)
def test_a_run_taken_up_again_from_its_states_is_the_same_run(name: str) -> None:
    whole, rules = start(gossip(name))
    whole.run(6)
    first, _ = start(gossip(name))
    first.run(3)
    second, resumed = start(gossip(name))
    second.restore(first.states(), round=3)
    second.run(6)
    assert np.array_equal(models(rules), models(resumed))


@pytest.mark.parametrize("fails_at", (1, 6, 11))
@pytest.mark.parametrize("name", GOSSIP)
def test_a_turn_that_fails_leaves_every_state_as_before(name: str, fails_at: int) -> None:
    data = trainers(5)
    expected, rules = start(gossip(name), data=data)
    expected.run(12)
    per_turn = data[NodeId("n02")].num_calls // 12
    data = trainers(5)
    data[NodeId("n02")].fails_at = fails_at * per_turn
    # One slow node, so that the others are rounds ahead or in the middle of a turn when it fails.
    world = World(compute_s=1e-3, compute_of={NodeId("n02"): 0.1}, link=LinkSpec(0.01))
    driver, again = start(gossip(name), data=data, world=world)
    with pytest.raises(NodeFailed, match=f"n02, turn {fails_at - 1}: OSError: the disk is full"):
        driver.run(12)
    for me, rule in again.items():
        reference, its_rules = start(gossip(name))
        reference.run(driver.rounds[me])
        for key, value in its_rules[me].state().items():
            assert np.array_equal(rule.state()[key], value)
    driver.run(12)
    assert np.array_equal(models(rules), models(again))


@pytest.mark.parametrize("name", GOSSIP)
def test_time_changes_no_bit(name: str) -> None:
    plain, rules = start(gossip(name))
    plain.run(5)
    ids = node_ids(5)
    slow = {(ids[0], ids[1]): LinkSpec(2.0, 1e3), (ids[3], ids[2]): LinkSpec(0.0, 10.0)}
    world = World(compute_s=0.1, compute_of={ids[4]: 3.0}, link=LinkSpec(0.05, 1e6), link_of=slow)
    timed, others = start(gossip(name), world=world)
    timed.run(5)
    assert np.array_equal(models(rules), models(others))
    assert plain.time_s == 0 and timed.time_s > 15


@pytest.mark.parametrize("name", GOSSIP)
def test_loss_is_refused_by_rules_that_need_every_message(name: str) -> None:
    if not catalog.make("gossip", name).traits.tolerates_loss:
        with pytest.raises(ConfigError, match=r"loss = 0\.2, but the rule of n00 does not tolerate loss"):
            start(gossip(name), world=World(loss=0.2))


@pytest.mark.parametrize("name", sorted(LOSSY))
def test_losses_follow_from_their_seed(name: str) -> None:
    def run(seed: int, *, compute_s: float = 0.0) -> tuple[np.ndarray, int]:
        make = gossip(name, **LOSSY[name])
        driver, rules = start(make, 6, world=World(loss=0.3, seed=seed, compute_s=compute_s))
        driver.run(20)
        assert next(iter(rules.values())).traits.tolerates_loss
        return models(rules), driver.counts.num_lost

    x, num_lost = run(7)
    again, num_again = run(7)
    assert np.array_equal(x, again) and num_lost == num_again
    assert 40 < num_lost < 104  # 240 messages, 0.3 of them on average, and some
    other, _ = run(8)
    assert not np.array_equal(x, other)
    assert np.isfinite(x).all()


# Reducers, and sums in general


class Averaging(Script):
    """Moves to the mean of all models, by a Reducer."""

    def __init__(self, reducer: str) -> None:
        rule = catalog.make("reduce", reducer)

        def body(script: Script, t: Turn) -> Effects[None]:
            script.x = yield from rule.mean("x", script.x, t, weight=1.0 + t.nodes.index(t.me))

        super().__init__(body)


@pytest.mark.parametrize("name", REDUCERS)
def test_every_node_learns_the_same_bits_in_any_order_of_arrival(name: str) -> None:
    results = []
    for order in (1, -1, 3):
        ids = node_ids(7)
        up = {(me, NodeId("root")): LinkSpec((order * i) % 7 * 0.1) for i, me in enumerate(ids)}
        driver, rules = start(lambda: Averaging(name), 7, world=World(link_of=up))
        scatter(driver, rules)
        driver.run(1)
        results.append(models(rules))
        assert (results[-1] == results[-1][0]).all()
    assert all(np.array_equal(x, results[0]) for x in results)


@pytest.mark.parametrize("name", [name for name in REDUCERS if catalog.load("reduce", name).exact])
def test_the_mean_of_equal_values_is_that_value(name: str) -> None:
    driver, rules = start(lambda: Averaging(name), 3)
    driver.run(2)
    assert np.abs(models(rules) - model().flat).max() < 1e-7


# Deadlock


def test_a_deadlock_names_who_waits_for_what() -> None:
    def body(rule: Script, t: Turn) -> Effects[None]:
        if t.me == "n00":
            rule.x = rule.x + rule.x
            yield from exchange("hello", {}, {NodeId("n01"), NodeId("n02")})
        elif t.me == "n01":
            yield from exchange("hello", {NodeId("n00"): {}}, ())
            yield from reduce("total", rule.x, {NodeId("n01"), NodeId("n02")})

    driver, rules = start(lambda: Script(body), 3)
    with pytest.raises(Deadlock) as caught:
        driver.run(1)
    assert str(caught.value) == (
        "nothing is under way: n00 in turn 0 waits for 'hello' from n02; "
        "n01 in turn 0 waits for the sum 'total' with n02; n02 finished"
    )
    assert caught.value.exit_code == 8
    assert driver.rounds == {"n00": 0, "n01": 0, "n02": 1}
    assert np.array_equal(rules[NodeId("n00")].x.flat, model().flat)


def test_a_lost_message_without_a_deadline_is_a_deadlock_not_a_hang() -> None:
    def body(rule: Script, t: Turn) -> Effects[None]:
        yield from exchange("x", {j: {"x": rule.x.flat} for j in t.peers_out}, t.peers_in)

    driver, _ = start(lambda: Script(body, tolerates_loss=True), 6, world=World(loss=0.5))
    with pytest.raises(Deadlock, match=r"in turn 0 waits for 'x' from n0"):
        driver.run(3)
