"""The mean of the workers' updates, each cut to a distance from where the last rounds went.

    v <- v + 1/n sum_i (m_i - v) min(1, radius / |m_i - v|),    num_steps times from the last round's v;    x <- x + v

Karimireddy, He, Jaggi, "Learning from History for Byzantine Robust Optimization", ICML 2021, the procedure of iterative
centered clipping. v starts at 0; `beta` is the worker momentum that its guarantees need, 0.9 in the authors' code. That
has 3 steps and a radius of 10 for momentum that adds gradients up; m of `_robust` is (1 - beta) times as long.
Deviations: of updates of local training, not of gradients, so that the radius is a length in the model's own units;
buckets as in `_robust`.
Sends the update and a number of samples, which only `max_samples` reads.
Status: checked (an infinite radius is the mean, one step by hand, convergence with attackers on quadratics where
`fedavg` fails).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tierline.core.arrays import Params
from tierline.core.errors import ConfigError
from tierline.learning.rule import NodeInfo
from tierline.learning.strategy._robust import RobustServer, Rows, UpdateWorker, Wide


@dataclass(kw_only=True, eq=False)
class Server(RobustServer):
    """Remembers v."""

    kept: ClassVar[tuple[str, ...]] = ("x", "v")

    radius: float = 10.0
    num_steps: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_steps < 1 or not self.radius > 0.0:
            raise ConfigError("centered_clipping: num_steps must be at least 1, radius above 0")

    def start(self, x: Params, node: NodeInfo) -> None:
        super().start(x, node)
        self.v = x.zeros_like()

    def combine(self, rows: Rows, counts: Wide) -> Wide:
        v = self.v.flat.astype(np.float64)
        for _ in range(self.num_steps):
            gaps = rows - v
            lengths = np.linalg.norm(gaps, axis=1)
            cuts = np.divide(self.radius, lengths, out=np.ones(len(rows)), where=lengths > self.radius)
            v = v + np.einsum("i,ij->j", cuts / len(rows), gaps)
        self.v = Params(self.v.layout, v.astype(np.float32))
        return v


class Worker(UpdateWorker):
    """Trains and sends its update, or with `beta` the momentum of its updates."""
