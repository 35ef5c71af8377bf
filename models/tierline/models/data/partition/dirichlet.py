"""Gives each class to the workers in shares drawn from a Dirichlet distribution; the smaller alpha, the fewer classes
each one knows.

Shuffle; cut into chunks of at most ten workers, in proportion to their number. In each chunk, for each class draw
p ~ Dir(alpha, ..., alpha), set p_k = 0 where worker k already holds an equal part of the chunk, renormalise, and deal
the class out in these shares; draw the chunk again until the smallest part is at least half of an equal one. Then join
all parts and cut them into equal contiguous ones.
As in the code published with Lin et al., "Quasi-Global Momentum: Accelerating Decentralized Deep Learning on
Heterogeneous Data", ICML 2021. So alpha = 0.1 with 16 workers is not a plain Dir(0.1) over 16.
Deviations: none known; the random numbers are NumPy's of today, so parts differ from theirs.
Status: partial (exact cover, equal sizes, skew falls with alpha; not compared with their indices).
"""

from __future__ import annotations

import numpy as np

from tierline.core.errors import ConfigError
from tierline.core.types import Array

_CHUNK_WORKERS = 10
_MAX_DRAWS = 10_000


class Dirichlet:
    """`alpha` is the concentration: 0.1 is much skew, 1 some, 100 next to none."""

    def __init__(self, *, alpha: float = 0.1) -> None:
        if not alpha > 0.0:
            raise ConfigError(f"dirichlet: alpha = {alpha} must be above 0")
        self._alpha = alpha

    def split(self, labels: Array, num_workers: int, seed: int) -> list[Array]:
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(labels))
        in_chunk = [min(_CHUNK_WORKERS, num_workers - start) for start in range(0, num_workers, _CHUNK_WORKERS)]
        ends = (np.cumsum(in_chunk) * len(labels)) // num_workers
        parts: list[Array] = []
        for rows, num in zip(np.split(order, ends[:-1]), in_chunk, strict=True):
            parts += self._deal(rows, labels, num, rng)
        return np.array_split(np.concatenate(parts), num_workers)

    def _deal(self, rows: Array, labels: Array, num: int, rng: np.random.Generator) -> list[Array]:
        """One chunk among `num` workers. Raises ConfigError where no draw is even enough."""
        equal = len(rows) / num
        for _ in range(_MAX_DRAWS):
            held: list[list[int]] = [[] for _ in range(num)]
            for k in np.unique(labels):
                of_class = rows[labels[rows] == k]
                p = rng.dirichlet(np.full(num, self._alpha)) * [len(mine) < equal for mine in held]
                if not p.sum() > 0.0:
                    break  # all that it drew are full
                ends = (np.cumsum(p / p.sum()) * len(of_class)).astype(np.int64)[:-1]
                for mine, more in zip(held, np.split(of_class, ends), strict=True):
                    mine += more.tolist()
            else:
                if min(map(len, held)) >= int(0.5 * equal):
                    return [np.array(mine, np.int64) for mine in held]
        raise ConfigError(
            f"dirichlet: {len(rows)} samples among {num} workers with alpha = {self._alpha} gave no even draw in "
            f"{_MAX_DRAWS}; raise alpha, or take fewer workers"
        )
