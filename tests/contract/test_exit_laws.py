"""Laws of every exit rule in the catalogue that scores classes; those of boxes and numbers have others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tierline.core import catalog
from tierline.core.decide import leaves
from tierline.core.errors import ShapeMismatch

OTHERS = {"box_margin", "spread"}
NAMES = [name for name in catalog.names("exit") if name not in OTHERS]
quick = settings(max_examples=80, deadline=None, derandomize=True, database=None)
logits = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=12),
    elements=st.floats(-(2.0**99), 2.0**99, width=32) | st.floats(-20, 20, width=32),
)


def score(name: str, logits_BK: np.ndarray) -> np.ndarray:
    return catalog.make("exit", name).score({"logits": logits_BK, "feature": np.zeros((1, 3), np.float32)})


@pytest.mark.parametrize("name", NAMES)
@quick
@given(x_BK=logits)
def test_scores_lie_in_range_for_any_logits_and_any_batch(name: str, x_BK: np.ndarray) -> None:
    score_B = score(name, x_BK)
    assert score_B.dtype == np.float32
    assert score_B.shape == (len(x_BK),)
    assert ((score_B >= 0) & (score_B <= 1)).all()
    singles = [score(name, x_BK[i : i + 1])[0] for i in range(len(x_BK))]
    assert score_B.tolist() == singles


@pytest.mark.parametrize("name", NAMES)
@quick
@given(x_BK=logits, data=st.data())
def test_order_of_classes_and_a_common_offset_do_not_matter(name: str, x_BK: np.ndarray, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(x_BK.shape[1])))
    assert np.allclose(score(name, x_BK), score(name, x_BK[:, order]), atol=1e-5)
    x_BK = np.clip(np.rint(x_BK), -1000, 1000)
    assert np.array_equal(score(name, x_BK), score(name, x_BK + np.float32(64)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_classes", [2, 3, 10, 1000])
def test_a_clearer_winner_scores_lower(name: str, num_classes: int) -> None:
    strength_B = np.linspace(0, 12, 49, dtype=np.float32)
    x_BK = np.zeros((49, num_classes), np.float32)
    x_BK[:, 1] = strength_B
    score_B = score(name, x_BK)
    assert (np.diff(score_B) < 0).all()
    assert score_B[0] >= 1 - 1 / num_classes - 1e-6
    assert score_B[-1] < 0.05


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_classes", [1, 2, 3, 7, 10, 33, 100, 1000])
def test_uniform_logits_never_exceed_one_and_all_leave_at_one(name: str, num_classes: int) -> None:
    score_B = score(name, np.full((4, num_classes), 3.3, np.float32))
    assert (score_B <= 1).all()
    assert leaves(score_B, 1.0).all()
    assert not leaves(score_B, 0.0).any()


@pytest.mark.parametrize("name", NAMES)
def test_certainty_scores_zero(name: str) -> None:
    for row in ([100.0, -100.0, -100.0], [2.0, -np.inf, -np.inf]):
        assert score(name, np.array([row], np.float32))[0] == pytest.approx(0.0, abs=1e-30)
    assert score(name, np.array([[5.0]], np.float32)).tolist() == [0.0]


@pytest.mark.parametrize("name", NAMES)
def test_broken_logits_score_one_without_touching_other_rows(name: str) -> None:
    nan, inf = np.nan, np.inf
    x_BK = np.array([[1, nan, 0], [inf, 0, 0], [-inf, -inf, -inf], [inf, inf, 0], [9, 0, 0]], np.float32)
    score_B = score(name, x_BK)
    assert score_B[:4].tolist() == [1.0] * 4
    assert score_B[4] == score(name, x_BK[4:])[0] < 0.01
    assert score(name, np.array([[nan]], np.float32)).tolist() == [1.0]
    assert leaves(score_B, 0.99).tolist() == [False] * 4 + [True]


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_has_no_scores(name: str) -> None:
    assert score(name, np.zeros((0, 5), np.float32)).shape == (0,)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_without_usable_logits_are_refused(name: str) -> None:
    rule = catalog.make("exit", name)
    with pytest.raises(ShapeMismatch, match="feature"):
        rule.score({"feature": np.zeros((1, 3), np.float32)})
    for bad in (np.zeros(3, np.float32), np.zeros((2, 0), np.float32), np.zeros((1, 3), np.int64)):
        with pytest.raises(ShapeMismatch, match="logits"):
            rule.score({"logits": bad})


def test_values_of_each_rule() -> None:
    p = np.array([[0.7, 0.2, 0.1]])
    x_BK = np.log(p).astype(np.float32)
    entropy = -(p * np.log(p)).sum() / np.log(3)
    expected = {"entropy": entropy, "max_softmax": 0.3, "margin": 0.5}
    for name, value in expected.items():
        assert score(name, x_BK)[0] == pytest.approx(value, abs=1e-6)
