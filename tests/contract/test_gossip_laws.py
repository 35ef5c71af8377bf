"""Laws of gossip rules beyond those of every rule: mass, repair after a gap, compressed messages, lost messages."""

from __future__ import annotations

import numpy as np
import pytest
from quadratics import Quadratic

from tierline.core import catalog
from tierline.core.arrays import Params
from tierline.core.types import NodeId
from tierline.learning.driver.memory import Memory
from tierline.learning.driver.world import LinkSpec, World
from tierline.learning.rule import Rule

GOSSIP = catalog.names("gossip")
MASS = [name for name in GOSSIP if catalog.make("gossip", name).traits.conserves == "mass"]
REMEMBERING = [name for name in GOSSIP if catalog.make("gossip", name).traits.per_edge_state and name != "relay"]
TREE = {"relay": "chain"}
# Options that add to what a rule remembers or sends.
MORE: list[tuple[str, dict[str, object]]] = [
    ("adagossip", {"compressor": "topk", "options": {"share": 0.5}}),
    ("ccl", {"nesterov": True}),
    ("choco", {"order": "ahead", "momentum": 0.5}),
    ("choco", {"compressor": "qsgd"}),
    ("d2", {"momentum": 0.5}),
    ("ngm", {"alpha": 0.0, "momentum": 0.5}),
    ("ngm", {"compressor": "sign"}),
    ("deep_squeeze", {"compressor": "topk", "options": {"share": 0.5}}),
    ("local_sgd", {"every": 3}),
    ("local_sgd", {"block": 2, "every": 1, "blocks_every": 2}),
    ("qg_dsgdm", {"form": "aketi"}),
    ("qg_dsgdm", {"form": "adam"}),
    ("relay", {"momentum": 0.5, "fallback": "own"}),
    ("sparse_push", {"compressor": "sign"}),
]
NAMES = [f"{name}-{'-'.join(map(str, options.values()))}" for name, options in MORE]
DIM = 6


def start(
    name: str,
    n: int = 6,
    *,
    lr: float = 0.05,
    topology: str | None = None,
    world: World | None = None,
    **options: object,
) -> tuple[Memory, dict[NodeId, Rule]]:
    ids = [NodeId(f"n{i}") for i in range(n)]
    rng = np.random.default_rng(3)
    data = {me: Quadratic(rng.uniform(0.5, 1.5, DIM), rng.normal(size=DIM)) for me in ids}
    rules: dict[NodeId, Rule] = {me: catalog.make("gossip", name, **options) for me in ids}
    x = Params.from_arrays({"w": rng.normal(size=(2, 2)), "b": rng.normal(size=2)})
    graph = catalog.make("topology", topology or TREE.get(name, "ring"))
    batch = {"labels": np.zeros(1, np.int64)}
    return Memory(rules, data, graph, x, lr=lambda round: lr, batches=lambda me, r: batch, world=world), rules


def models(rules: dict[NodeId, Rule]) -> np.ndarray:
    return np.stack([rule.x.flat for rule in rules.values()])


def mass(rules: dict[NodeId, Rule]) -> tuple[np.ndarray, float]:
    """Sum of weight times model, and of weights."""
    weights = np.array([float(rule.state()["mass"]) for rule in rules.values()])
    return weights @ models(rules).astype(np.float64), float(weights.sum())


@pytest.mark.parametrize("topology", ["star", "binary_tree", "exponential", "ring"])
@pytest.mark.parametrize("name", MASS)
def test_push_sums_keep_their_mass(name: str, topology: str) -> None:
    driver, rules = start(name, lr=0.0, topology=topology)
    for i, rule in enumerate(rules.values()):
        rule.load({**rule.state(), "x": np.full(DIM, i, np.float32)})
    before, _ = mass(rules)
    driver.run(30)
    after, total = mass(rules)
    assert abs(total - len(rules)) < 1e-12
    assert np.abs(after - before).max() < 1e-5 * np.abs(before).max()


@pytest.mark.parametrize(("name", "options"), MORE, ids=NAMES)
def test_with_options_too_a_run_taken_up_again_is_the_same_run(name: str, options: dict[str, object]) -> None:
    whole, rules = start(name, **options)
    whole.run(7)
    first, _ = start(name, **options)
    first.run(4)
    second, resumed = start(name, **options)
    second.restore(first.states(), round=4)
    second.run(7)
    assert np.array_equal(models(rules), models(resumed))


@pytest.mark.parametrize(("name", "options"), MORE, ids=NAMES)
def test_with_options_too_time_changes_no_bit(name: str, options: dict[str, object]) -> None:
    plain, rules = start(name, **options)
    plain.run(5)
    slow = {(NodeId("n0"), NodeId("n1")): LinkSpec(2.0, 1e3), (NodeId("n3"), NodeId("n2")): LinkSpec(0.5)}
    timed, others = start(name, world=World(compute_s=0.1, link=LinkSpec(0.05, 1e6), link_of=slow), **options)
    timed.run(5)
    assert np.array_equal(models(rules), models(others))


@pytest.mark.parametrize("name", REMEMBERING)
def test_resync_repairs_what_a_lost_difference_spoiled(name: str) -> None:
    whole, rules = start(name)
    whole.run(10)
    spoiled, others = start(name)
    spoiled.run(5)
    victim = others[NodeId("n2")]
    state = victim.state()
    around = np.asarray(state["replicas/around"])
    victim.load({**state, "replicas/around": around + 1.0})
    spoiled.resync()
    spoiled.run(10)
    assert np.abs(models(rules) - models(others)).max() < 1e-5


@pytest.mark.parametrize("name", REMEMBERING)
def test_without_resync_it_stays_spoiled(name: str) -> None:
    whole, rules = start(name)
    whole.run(10)
    spoiled, others = start(name)
    spoiled.run(5)
    victim = others[NodeId("n2")]
    state = victim.state()
    victim.load({**state, "replicas/around": np.asarray(state["replicas/around"]) + 1.0})
    spoiled.run(10)
    assert np.abs(models(rules) - models(others)).max() > 1e-2


@pytest.mark.parametrize(
    ("name", "options"), [("d_psgd", {}), ("relay", {}), ("relay", {"fallback": "own"}), ("sgp", {})]
)
def test_with_a_tenth_of_messages_lost_they_still_agree_near_the_optimum(name: str, options: dict[str, object]) -> None:
    driver, rules = start(name, lr=0.05, world=World(loss=0.1, seed=5), within_s=0.5, **options)
    first = models(rules)[0]
    driver.run(250)
    assert driver.counts.num_lost > 0.05 * driver.counts.num_messages
    rng = np.random.default_rng(3)
    data = [(rng.uniform(0.5, 1.5, DIM), rng.normal(size=DIM)) for _ in rules]
    optimum = sum(a * b for a, b in data) / sum(a for a, _ in data)
    assert np.abs(models(rules).mean(axis=0) - optimum).max() < 0.15 * np.abs(first - optimum).max()


def test_relay_refuses_a_circle() -> None:
    driver, _ = start("relay", topology="ring")
    with pytest.raises(Exception, match="the topology has a circle; choose a tree"):
        driver.run(10)
