"""Laws of the room `partition`: who gets which samples."""

from __future__ import annotations

import numpy as np
import pytest

from tierline.core import catalog

NAMES = catalog.names("partition")
LABELS = np.random.default_rng(3).integers(0, 10, 1237)


@pytest.mark.parametrize("num_workers", [1, 2, 7, 10, 16, 25])
@pytest.mark.parametrize("name", NAMES)
def test_every_sample_goes_to_exactly_one_worker(name: str, num_workers: int) -> None:
    parts = catalog.make("partition", name).split(LABELS, num_workers, 0)
    assert len(parts) == num_workers and all(len(part) for part in parts)
    assert all(part.dtype == np.int64 and part.ndim == 1 for part in parts)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(LABELS)))


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_and_nothing_else_decides(name: str) -> None:
    one, again, other = (catalog.make("partition", name).split(LABELS, 8, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert not all(np.array_equal(np.sort(a), np.sort(b)) for a, b in zip(one, other, strict=True))
