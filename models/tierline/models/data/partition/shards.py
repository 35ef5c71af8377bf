"""Sorts the samples by label, cuts them into equal shards, and gives each worker a few: it then knows few classes.

McMahan et al., AISTATS 2017, section 3, "Non-IID": 200 shards of 300 samples of MNIST, 2 to each of 100 clients.
Deviations: samples of one label are shuffled before the cut, so that a seed also chooses them; sizes of shards differ
by one where the number of samples does not divide.
Status: checked (exact cover; number of labels per worker).
"""

from __future__ import annotations

import numpy as np

from tierline.core.errors import ConfigError
from tierline.core.types import Array


class Shards:
    """`per_worker` shards each."""

    def __init__(self, *, per_worker: int = 2) -> None:
        if per_worker < 1:
            raise ConfigError(f"shards: per_worker = {per_worker} must be at least 1")
        self._per_worker = per_worker

    def split(self, labels: Array, num_workers: int, seed: int) -> list[Array]:
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(labels))
        sorted_rows = order[np.argsort(labels[order], kind="stable")]
        shards = np.array_split(sorted_rows, num_workers * self._per_worker)
        dealt = rng.permutation(len(shards)).reshape(num_workers, self._per_worker)
        return [np.concatenate([shards[k] for k in mine]) for mine in dealt]
