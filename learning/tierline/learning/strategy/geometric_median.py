"""The point whose distances to the workers' updates have the least sum (RFA).

    z <- sum_i w_i d_i / sum_i w_i,    w_i = a_i / max(nu, |z - d_i|),    num_steps times from z = 0;    x <- x + z

Pillutla, Kakade, Harchaoui, "Robust Aggregation for Federated Learning", IEEE Transactions on Signal Processing 2022,
Algorithm 2 (smoothed Weiszfeld). a_i is 1, or with `weighted` the samples behind d_i as in the paper: leave that off
where counts may be lies, or cap them with `max_samples`. 8 steps and nu = 0.1 are those of the authors of buckets.
Deviations: starts at 0, no movement, and stops after so many steps; worker momentum and buckets as in `_robust`.
Sends the update and a number of samples.
Status: checked (the median of one, of points on a line, the optimality condition, one step by hand; convergence with
attackers on quadratics where `fedavg` fails).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tierline.core.errors import ConfigError
from tierline.learning.strategy._robust import RobustServer, Rows, UpdateWorker, Wide


@dataclass(kw_only=True, eq=False)
class Server(RobustServer):
    """Takes `num_steps` steps of Weiszfeld's iteration, smoothed by `nu`."""

    num_steps: int = 8
    nu: float = 0.1
    weighted: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_steps < 1 or not self.nu > 0.0:
            raise ConfigError("geometric_median: num_steps must be at least 1, nu above 0")
        if self.weighted and self.bucket > 1:
            raise ConfigError("geometric_median: buckets are equally weighted; leave out weighted or bucket")

    def combine(self, rows: Rows, counts: Wide) -> Wide:
        weights = counts if self.weighted else np.ones(len(rows))
        z: Wide = np.zeros(rows.shape[1])
        for _ in range(self.num_steps):
            pull = weights / np.maximum(self.nu, np.linalg.norm(rows - z, axis=1))
            z = np.einsum("i,ij->j", pull / pull.sum(), rows, dtype=np.float64)
        return z


class Worker(UpdateWorker):
    """Trains and sends its update."""
