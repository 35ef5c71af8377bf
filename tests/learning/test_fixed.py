from __future__ import annotations

import functools
import operator

import numpy as np
import pytest

from tierline.core.arrays import Params
from tierline.core.errors import BadFrame
from tierline.learning.fixed import WeightedSum, contribution


def params(*values: float) -> Params:
    return Params.from_arrays({"w": np.array(values, np.float32)})


def add(parts: list[WeightedSum]) -> WeightedSum:
    return functools.reduce(operator.add, parts)


def test_sums_do_not_depend_on_order_or_grouping() -> None:
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(20, 1000)) * 10.0 ** rng.integers(-4, 5, (20, 1000))).astype(np.float32)
    weights = rng.uniform(0.1, 300, 20)
    parts = [contribution(params(*v), weight=float(w), num_members=20) for v, w in zip(values, weights, strict=True)]
    flat, backwards = add(parts), add(parts[::-1])
    tree = add([add(parts[:3]), add([add(parts[3:11]), add(parts[11:])])])
    for other in (backwards, tree):
        assert np.array_equal(flat.integers, other.integers) and flat.weight_units == other.weight_units
        assert np.array_equal(flat.mean(), other.mean())
    # The float32 sums that this replaces do differ, or the test would show nothing.
    assert not np.array_equal(functools.reduce(operator.add, values), functools.reduce(operator.add, values[::-1]))
    expected = (weights[:, None] * values.astype(np.float64)).sum(axis=0) / weights.sum()
    assert np.allclose(flat.mean(), expected, rtol=1e-8, atol=1e-9)


def test_the_mean_of_equal_values_is_the_value_whatever_the_weights() -> None:
    x = params(0.5, -3.25, 1 / 3, 1e-3)
    total = add([contribution(x, weight=w, num_members=3) for w in (1 / 3, 1 / 7, 600.0)])
    assert np.abs(total.mean() - x.flat).max() < 2**-32
    assert abs(total.weight - (1 / 3 + 1 / 7 + 600)) < 1e-9


def test_values_go_to_the_nearest_unit_and_ties_to_the_even_one() -> None:
    units = np.array([0.4, 0.75, -0.75, 0.5, 1.5, -2.5]) * 2.0**-32
    assert contribution(params(*units), weight=1.0, num_members=2).integers.tolist() == [0, 1, -1, 0, 2, -2]


def test_more_bits_resolve_smaller_values() -> None:
    x = params(1.2345e-9)
    coarse, fine = (contribution(x, weight=1.0, num_members=2, fraction_bits=bits).sum()[0] for bits in (32, 56))
    assert abs(fine - x.flat[0]) < 1e-16 < 1e-11 < abs(coarse - x.flat[0])


@pytest.mark.parametrize("num_members", [1, 2, 3, 1000])
def test_a_group_of_the_largest_values_does_not_overflow_and_larger_ones_are_refused(num_members: int) -> None:
    edge = 2.0**31 / num_members
    fits = params(edge * (1 - 1e-6), -edge * (1 - 1e-6))
    total = add([contribution(fits, weight=1.0, num_members=num_members)] * num_members)
    assert total.integers[0] > 0.99 * 2**63 and total.integers[1] == -total.integers[0]
    with pytest.raises(BadFrame, match=f"g: {num_members} values of .* overflow a sum with 32 fraction bits"):
        contribution(params(0.0, edge * 1.001), weight=1.0, num_members=num_members, where="g")
    with pytest.raises(BadFrame, match="overflow"):
        contribution(params(-edge / 4), weight=5.0, num_members=num_members)


def test_values_that_cannot_be_added_are_refused_by_name() -> None:
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(BadFrame, match="g: 'w' holds values that are not finite"):
            contribution(params(1.0, bad), weight=1.0, num_members=2, where="g")
    for weight in (0.0, -1.0, float("nan"), float("inf"), 2.0**-40, 2.0**31, 1e300):
        with pytest.raises(BadFrame, match="weight"):
            contribution(params(1.0), weight=weight, num_members=2)
    with pytest.raises(BadFrame, match="fraction_bits = 63"):
        contribution(params(1.0), weight=1.0, num_members=2, fraction_bits=63)


def test_no_values_at_all() -> None:
    nothing = Params.from_arrays({})
    assert contribution(nothing, weight=2.0, num_members=2).mean().shape == (0,)
