from __future__ import annotations

import numpy as np
import pytest

from tierline.core import catalog
from tierline.core.errors import ConfigError

LABELS = np.repeat(np.arange(10), 600)


def parts(name: str, num_workers: int, seed: int = 0, **options: object) -> list[np.ndarray]:
    found: list[np.ndarray] = catalog.make("partition", name, **options).split(LABELS, num_workers, seed)
    return found


def num_labels(split: list[np.ndarray]) -> list[int]:
    return [len(np.unique(LABELS[part])) for part in split]


def skew(split: list[np.ndarray]) -> float:
    """Mean share of a worker's most frequent label."""
    return float(np.mean([np.bincount(LABELS[part]).max() / len(part) for part in split]))


def test_iid_parts_are_equal_and_know_every_label() -> None:
    split = parts("iid", 100)
    assert {len(part) for part in split} == {60}
    assert min(num_labels(split)) >= 8 and skew(split) < 0.25


def test_two_shards_are_at_most_two_labels_as_mcmahan_dealt_them() -> None:
    split = parts("shards", 100)
    assert {len(part) for part in split} == {60}
    assert set(num_labels(split)) == {1, 2}
    assert set(num_labels(parts("shards", 100, per_worker=1))) == {1}
    assert max(num_labels(parts("shards", 100, per_worker=3))) == 3


def test_each_label_lies_in_as_many_shards_as_it_fills() -> None:
    split = parts("shards", 100)
    halves = np.concatenate([np.array_split(LABELS[part], 2) for part in split])
    assert all(len(np.unique(half)) == 1 for half in halves)
    assert np.bincount([half[0] for half in halves]).tolist() == [20] * 10


@pytest.mark.parametrize("num_workers", [5, 16, 20, 33])
def test_dirichlet_parts_are_equal_and_skewed_by_alpha(num_workers: int) -> None:
    by_alpha = [parts("dirichlet", num_workers, alpha=alpha) for alpha in (0.1, 1.0, 100.0)]
    for split in by_alpha:
        sizes = [len(part) for part in split]
        assert max(sizes) - min(sizes) <= 1
    high, middle, low = map(skew, by_alpha)
    assert high > middle + 0.1 > low + 0.1 and high > 0.45
    assert low < 0.2


def test_dirichlet_refuses_what_cannot_be_dealt() -> None:
    with pytest.raises(ConfigError, match="alpha = 0 must be above 0"):
        catalog.make("partition", "dirichlet", alpha=0)
    with pytest.raises(ConfigError, match=r"400 samples among 10 workers with alpha = 0\.01 gave no even draw"):
        catalog.make("partition", "dirichlet", alpha=0.01).split(np.zeros(400, np.int64), 10, 0)
    with pytest.raises(ConfigError, match="per_worker = 0 must be at least 1"):
        catalog.make("partition", "shards", per_worker=0)
