"""Federated averaging whose workers are held near the model they started from.

    x <- sum_k n_k x_k / sum_k n_k,    x_k = E epochs on  f_k(y) + mu/2 |y - x|^2  from x

Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, Algorithm 2; there mu is one of 0.001, 0.01,
0.1, 1. With mu = 0 this is `fedavg`, bit for bit.
Deviations: the paper draws workers in proportion to their samples and averages with equal weights; here they are drawn
alike and weighted, as its experiments do. Every worker runs all epochs.
Status: checked (mu = 0 against `fedavg`; large mu stays at x; the gradient against its formula, in the Trainer).
"""

from __future__ import annotations

import dataclasses

from tierline.learning.compute import Job
from tierline.learning.rule import Turn
from tierline.learning.strategy._rounds import MeanServer, PlainWorker


class Server(MeanServer):
    """As in `fedavg`."""


class Worker(PlainWorker):
    """Trains with the proximal term."""

    def __init__(self, *, mu: float = 0.01, share: float = 1.0, max_samples: int | None = None) -> None:
        super().__init__(share=share, max_samples=max_samples)
        self._mu = mu

    def _job(self, t: Turn) -> Job:
        return dataclasses.replace(t.job, proximal=self._mu)
