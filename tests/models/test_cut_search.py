"""Cuts found in cost graphs: the minimum cut against every placement, and known answers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierline.core.errors import ConfigError
from tierline.models.partition._graph import INPUT, CostGraph, Flow, Operator
from tierline.models.partition.brute_force import BruteForce
from tierline.models.partition.min_cut import MinCut
from tierline.models.partition.neurosurgeon import Neurosurgeon

SECONDS = st.one_of(st.integers(0, 9).map(float), st.floats(0, 10, allow_subnormal=False))


@st.composite
def dags(draw: st.DrawFn, num_tiers: int, most: int) -> CostGraph:
    """Every operator reads one to three earlier tensors, the input among them."""
    size = draw(st.integers(1, most))
    readers: dict[int, set[int]] = {maker: set() for maker in range(INPUT, size)}
    for reader in range(size):
        for maker in draw(st.sets(st.integers(INPUT, reader - 1), min_size=1, max_size=3)):
            readers[maker].add(reader)
    costs = st.tuples(*[SECONDS] * num_tiers)
    moves = st.tuples(*[SECONDS] * (num_tiers - 1))
    operators = tuple(Operator(f"o{i}", draw(costs)) for i in range(size))
    flows = tuple(Flow(f"x{m}", m, tuple(sorted(r)), draw(moves)) for m, r in readers.items())
    return CostGraph(operators, flows)


def chain(num: int, costs: list[tuple[float, ...]], moves: list[tuple[float, ...]]) -> CostGraph:
    operators = tuple(Operator(f"o{i}", costs[i]) for i in range(num))
    return CostGraph(operators, tuple(Flow(f"x{i}", i - 1, (i,), moves[i]) for i in range(num)))


@settings(max_examples=50, deadline=None)
@given(dags(2, 9))
def test_two_tiers_cost_what_the_best_of_all_placements_costs(graph: CostGraph) -> None:
    assert graph.cost(MinCut().place(graph)) == pytest.approx(graph.cost(BruteForce().place(graph)), abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(dags(3, 6))
def test_three_tiers_too(graph: CostGraph) -> None:
    assert graph.cost(MinCut().place(graph)) == pytest.approx(graph.cost(BruteForce().place(graph)), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(SECONDS, SECONDS, SECONDS), min_size=1, max_size=9))
def test_neurosurgeon_is_the_minimum_cut_of_a_chain(rows: list[tuple[float, float, float]]) -> None:
    graph = chain(len(rows), [row[:2] for row in rows], [(row[2],) for row in rows])
    assert graph.cost(Neurosurgeon().place(graph)) == pytest.approx(graph.cost(MinCut().place(graph)), abs=1e-9)


def test_a_tensor_with_several_readers_is_paid_once() -> None:
    """Two readers above: 3 once is less than the 4 that keeping both below costs; 3 twice would not be."""
    operators = (Operator("a", (0.0, 100.0)), Operator("b", (2.0, 0.0)), Operator("c", (2.0, 0.0)))
    flows = (Flow("in", INPUT, (0,), (100.0,)), Flow("x", 0, (1, 2), (3.0,)))
    graph = CostGraph(operators, flows)
    assert MinCut().place(graph) == [0, 1, 1]
    assert graph.cost([0, 1, 1]) == 3.0


def test_nothing_returns_from_above() -> None:
    """b is free above and d below, but d reads b."""
    operators = (Operator("b", (5.0, 0.0)), Operator("d", (0.0, 50.0)))
    flows = (Flow("in", INPUT, (0,), (0.0,)), Flow("x", 0, (1,), (0.0,)))
    graph = CostGraph(operators, flows)
    assert MinCut().place(graph) == [0, 0]
    assert graph.cost([1, 0]) == math.inf


@pytest.mark.parametrize(("seconds_per_byte", "cut"), [(10.0, 3), (0.1, 1), (0.0001, 0)])
def test_the_cut_climbs_as_bandwidth_falls(seconds_per_byte: float, cut: int) -> None:
    sizes, slow = (100, 10, 8), 10.0
    graph = chain(3, [(slow * c, c) for c in (0.1, 1.0, 1.0)], [(n * seconds_per_byte,) for n in sizes])
    for way in (MinCut(), Neurosurgeon(), BruteForce()):
        assert way.place(graph) == [0] * cut + [1] * (3 - cut)


def test_what_no_tier_can_run_is_refused() -> None:
    graph = chain(1, [(math.inf, math.inf)], [(0.0,)])
    for way in (MinCut(), BruteForce()):
        with pytest.raises(ConfigError, match="no placement is possible"):
            way.place(graph)
    only_above = chain(2, [(1.0, math.inf), (math.inf, 9.0)], [(0.0,), (4.0,)])
    assert MinCut().place(only_above) == [0, 1]


def test_baselines_name_what_they_cannot_do() -> None:
    wide = CostGraph((Operator("a", (1.0, 1.0)),) * 2, (Flow("in", INPUT, (0, 1), (1.0,)),))
    with pytest.raises(ConfigError, match="neurosurgeon: cuts chains"):
        Neurosurgeon().place(wide)
    with pytest.raises(ConfigError, match="use min_cut"):
        BruteForce().place(chain(21, [(1.0, 1.0)] * 21, [(1.0,)] * 21))
    with pytest.raises(ConfigError, match="sort the operators"):
        CostGraph((Operator("a", (1.0, 1.0)),) * 2, (Flow("x", 1, (0,), (1.0,)),))


def test_deep_networks_are_no_problem() -> None:
    graph = chain(400, [(2.0, 1.0, 0.5)] * 400, [(1000.0, 1.0)] * 150 + [(3.0, 100.0)] * 250)
    tiers = MinCut().place(graph)
    assert tiers == sorted(tiers) and graph.cost(tiers) <= min(graph.cost([t] * 400) for t in range(3))
