"""The mean of the workers' updates without the largest and the smallest, value by value.

    x <- x + 1 / (n - 2 b)  sum of the values between the b smallest and the b largest

Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018,
Algorithm 1, option II. Deviations: b = `trim` is a number of workers where the paper has a share; of updates of local
training, not of gradients; worker momentum and buckets as in `_robust`.
Sends the update and a number of samples, which only `max_samples` reads.
Status: checked (against a sort, trim = 0 is the mean, convergence with attackers on quadratics where `fedavg` fails).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tierline.core.errors import ConfigError
from tierline.learning.strategy._robust import RobustServer, Rows, UpdateWorker, Wide


@dataclass(kw_only=True, eq=False)
class Server(RobustServer):
    """Drops `trim` updates at either end of each value."""

    trim: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trim < 0:
            raise ConfigError(f"trimmed_mean: trim = {self.trim} must be at least 0")

    @property
    def least(self) -> int:
        return 2 * self.trim + 1

    def combine(self, rows: Rows, counts: Wide) -> Wide:
        first, last = self.trim, len(rows) - self.trim - 1
        middle = np.partition(rows, (first, last), axis=0)[first : last + 1]
        mean: Wide = middle.mean(axis=0, dtype=np.float64)
        return mean


class Worker(UpdateWorker):
    """Trains and sends its update."""
