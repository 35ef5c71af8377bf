from __future__ import annotations

import numpy as np
import pytest

from tierline.core.decide import bounded, leaves, logits_of, relative
from tierline.core.errors import ShapeMismatch

SCORES = np.array([0.0, 0.25, 0.5, 1.0, np.nan], np.float32)


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (0.0, [False, False, False, False, False]),
        (0.25, [True, False, False, False, False]),
        (0.5, [True, True, False, False, False]),
        (0.999, [True, True, True, False, False]),
        (1.0, [True, True, True, True, True]),
        (1.5, [True, True, True, True, True]),
    ],
)
def test_leaves_below_the_threshold_and_all_at_one(threshold: float, expected: list[bool]) -> None:
    left_B = leaves(SCORES, threshold)
    assert left_B.dtype == np.bool_
    assert left_B.tolist() == expected


def test_exit_share_is_monotone_in_the_threshold() -> None:
    score_B = np.random.default_rng(0).random(200, dtype=np.float32)
    shares = [leaves(score_B, t).mean() for t in np.linspace(0, 1, 41)]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)


def test_relative_is_stable_for_large_logits() -> None:
    z_BK = relative(np.array([[3e38, 3e38, -3e38], [-1e4, -1e4 + 1, -np.inf]], np.float32))
    assert z_BK.tolist() == [[0, 0, -80], [-1, 0, -80]]


def test_bounded_clips_and_turns_nan_into_one() -> None:
    assert bounded(np.array([-0.1, 0.3, 1.0000002, np.nan], np.float32)).tolist() == [
        0.0,
        np.float32(0.3),
        1.0,
        1.0,
    ]


def test_logits_of_takes_any_float_and_memory_order() -> None:
    x_BK = np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3))
    logits_BK = logits_of({"logits": x_BK})
    assert logits_BK.dtype == np.float32
    assert logits_BK.flags.c_contiguous
    with pytest.raises(ShapeMismatch, match=r"'logits' among \['feature'\]"):
        logits_of({"feature": x_BK})
