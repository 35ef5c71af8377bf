"""Laws of every aggregator in the catalogue. `symmetric` claims that the order of the parts does not matter."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tierline.core import catalog
from tierline.core.errors import ShapeMismatch
from tierline.core.types import TensorSpec

NAMES = catalog.names("aggregate")
SHAPES = [(3,), (4, 2, 2), (1,)]
NUM_PARTS, NUM_ROWS = 4, 5


def parts(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(NUM_PARTS, NUM_ROWS, *shape)).astype(np.float32)


def mask() -> np.ndarray:
    present_NB = np.random.default_rng(4).random((NUM_PARTS, NUM_ROWS)) < 0.6
    present_NB[:, 1] = False
    present_NB[:, 2] = True
    return present_NB


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_fused_spec_is_true(name: str, shape: tuple[int, ...]) -> None:
    aggregator, x_NB = catalog.make("aggregate", name), parts(shape)
    spec = aggregator.fused_spec(TensorSpec("float32", shape), NUM_PARTS)
    for present_NB in (mask(), np.ones((NUM_PARTS, NUM_ROWS), np.bool_)):
        fused_B = aggregator.combine(x_NB, present_NB)
        spec.check(fused_B, name)
        assert len(fused_B) == NUM_ROWS


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e30, 1e30])
@pytest.mark.parametrize("name", NAMES)
def test_absent_parts_never_count(name: str, garbage: float) -> None:
    aggregator, x_NB, present_NB = catalog.make("aggregate", name), parts((4, 2)), mask()
    expected = aggregator.combine(x_NB, present_NB)
    x_NB[~present_NB] = garbage
    assert np.array_equal(aggregator.combine(x_NB, present_NB), expected)


@pytest.mark.parametrize("name", NAMES)
def test_no_part_at_all_yields_zeros(name: str) -> None:
    aggregator, x_NB = catalog.make("aggregate", name), parts((4, 2))
    assert not aggregator.combine(x_NB, mask())[1].any()
    assert not aggregator.combine(x_NB, np.zeros((NUM_PARTS, NUM_ROWS), np.bool_)).any()


@pytest.mark.parametrize("name", NAMES)
def test_batch_equals_single_and_complete_rows_ignore_their_neighbours(name: str) -> None:
    aggregator, x_NB, present_NB = catalog.make("aggregate", name), parts((4, 2)), mask()
    fused_B = aggregator.combine(x_NB, present_NB)
    for b in range(NUM_ROWS):
        single = aggregator.combine(x_NB[:, b : b + 1], present_NB[:, b : b + 1])
        assert np.array_equal(single[0], fused_B[b])


@pytest.mark.parametrize("name", NAMES)
def test_order_of_parts(name: str) -> None:
    aggregator, x_NB, present_NB = catalog.make("aggregate", name), parts((4, 2)), mask()
    expected = aggregator.combine(x_NB, present_NB)
    same = [
        np.allclose(aggregator.combine(x_NB[list(order)], present_NB[list(order)]), expected, atol=1e-6)
        for order in itertools.permutations(range(NUM_PARTS))
    ]
    assert all(same) if aggregator.symmetric else not all(same)


@pytest.mark.parametrize("name", NAMES)
def test_one_part_alone_is_itself_and_inputs_stay_as_they_are(name: str) -> None:
    aggregator, x_NB = catalog.make("aggregate", name), parts((4, 2))
    before = x_NB.copy()
    alone = aggregator.combine(x_NB[:1], np.ones((1, NUM_ROWS), np.bool_))
    assert np.array_equal(alone, x_NB[0])
    aggregator.combine(x_NB, mask())
    assert np.array_equal(x_NB, before)


@pytest.mark.parametrize("name", NAMES)
def test_a_mask_that_does_not_fit_is_refused(name: str) -> None:
    aggregator, x_NB = catalog.make("aggregate", name), parts((4, 2))
    for present_NB in (np.ones((NUM_ROWS, NUM_PARTS), np.bool_), np.ones((NUM_PARTS, NUM_ROWS), np.int8)):
        with pytest.raises(ShapeMismatch, match=name):
            aggregator.combine(x_NB, present_NB)
    with pytest.raises(ShapeMismatch, match=name):
        aggregator.combine(x_NB.astype(np.int32), mask())


def test_values() -> None:
    x_NB = np.array([[[1.0, -4.0]], [[3.0, -2.0]], [[100.0, 100.0]]], np.float32)
    present_NB = np.array([[True], [True], [False]])
    fused = {name: catalog.make("aggregate", name).combine(x_NB, present_NB).tolist() for name in NAMES}
    assert fused["max_pool"] == [[3.0, -2.0]]
    assert fused["avg_pool"] == [[2.0, -3.0]]
    assert fused["concat"] == [[1.0, -4.0, 3.0, -2.0, 0.0, 0.0]]


def test_concat_joins_channels_and_needs_an_axis() -> None:
    concat = catalog.make("aggregate", "concat")
    x_NB = np.arange(2 * 1 * 2 * 3, dtype=np.float32).reshape(2, 1, 2, 3)
    assert np.array_equal(concat.combine(x_NB, np.ones((2, 1), np.bool_))[0], x_NB.reshape(4, 3))
    with pytest.raises(ShapeMismatch):
        concat.combine(np.zeros((2, 3), np.float32), np.ones((2, 3), np.bool_))
    with pytest.raises(ShapeMismatch):
        concat.fused_spec(TensorSpec("float32", ()), 2)
