"""The median of the workers' updates, value by value.

    x <- x + median(d_1, .., d_n);   of an even number the mean of the two in the middle

Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018,
Algorithm 1, option I. Deviations: of updates of local training, not of gradients; worker momentum and buckets as in
`_robust`. Unlike workers pull it away from the mean even where all are honest.
Sends the update and a number of samples, which only `max_samples` reads.
Status: checked (against a sort, the median of one, convergence with attackers on quadratics where `fedavg` fails).
"""

from __future__ import annotations

import numpy as np

from tierline.learning.strategy._robust import RobustServer, Rows, UpdateWorker, Wide


class Server(RobustServer):
    """Takes the median."""

    def combine(self, rows: Rows, counts: Wide) -> Wide:
        return np.median(rows, axis=0).astype(np.float64)


class Worker(UpdateWorker):
    """Trains and sends its update."""
