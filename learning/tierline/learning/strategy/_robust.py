"""What rules that withstand bad workers share: whole updates reach the server, equally weighted, perhaps in buckets.

    worker:  d = fit(x) - x;   m <- beta m + (1 - beta) d;   send m
    server:  x <- x + F(m_1, .., m_n)

Buckets of s and worker momentum: Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via
Bucketing", ICLR 2022, and "Learning from History for Byzantine Robust Optimization", ICML 2021. There m is of gradients
and starts at the first; here it is of the updates that local training makes, and starts at 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from tierline.core.arrays import Params
from tierline.core.errors import ConfigError
from tierline.core.types import NodeId
from tierline.learning.effects import Effects, Message, tell
from tierline.learning.half import Half
from tierline.learning.rule import NodeInfo, Turn
from tierline.learning.strategy._rounds import Round, WithinOption, moved
from tierline.learning.strategy._whole import accepted, finite, num_samples, too_few

Rows = npt.NDArray[np.float32]
"""Updates, one per row: (n, number of values of the model)."""
Wide = npt.NDArray[np.float64]


@dataclass(kw_only=True, eq=False)
class RobustServer(Half):
    """Holds the model, and moves it by `combine` of the updates. An update that is not finite, of another size, or
    claims more than `max_samples` is refused with a warning; with `bucket` = s, means of s random ones are combined.
    Refused updates count towards `quorum`. With too few left the model stays as it is. Raises ConfigError."""

    kept: ClassVar[tuple[str, ...]] = ("x",)

    bucket: int = 1
    share: float = 1.0
    quorum: int | None = None
    within_s: WithinOption = None
    max_samples: int | None = None

    def __post_init__(self) -> None:
        self._round = Round(self.share, self.quorum, self.within_s, self.max_samples)
        if self.bucket < 1:
            raise ConfigError(f"{self.name}: bucket = {self.bucket} must be at least 1")

    @property
    def name(self) -> str:
        """Of the rule, as the catalogue has it."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def least(self) -> int:
        """Rows that `combine` needs."""
        return 1

    def combine(self, rows: Rows, counts: Wide) -> Wide:
        """One update of many. `counts` are the samples behind each row."""
        raise NotImplementedError

    def turn(self, t: Turn) -> Effects[None]:
        num = self.quorum or len(self._round.workers(t))
        if math.ceil(num / self.bucket) < self.least:
            raise ConfigError(f"{self.name}: {num} updates in buckets of {self.bucket} are fewer than {self.least}")

        def read(_: NodeId, message: Message) -> tuple[Params, float]:
            return finite(message, "d", self.x), num_samples(message, self.max_samples)

        got = accepted(t, (yield from self._round.hear_each(t, self.x)), read)
        if math.ceil(len(got) / self.bucket) < self.least:
            too_few(t, self.name, len(got), (self.least - 1) * self.bucket + 1)
            return
        rows = np.stack([d.flat for d, _ in got.values()])
        counts = np.array([n for _, n in got.values()])
        rows, counts = self._buckets(t, rows, counts)
        self.x = moved(self.x, self.x.flat + self.combine(rows, counts))

    def _buckets(self, t: Turn, rows: Rows, counts: Wide) -> tuple[Rows, Wide]:
        if self.bucket == 1:
            return rows, counts
        order = t.rng("buckets").permutation(len(rows))
        groups = [order[start : start + self.bucket] for start in range(0, len(rows), self.bucket)]
        means = np.stack([rows[group].mean(axis=0, dtype=np.float64) for group in groups])
        return means.astype(np.float32), np.array([counts[group].sum() for group in groups])


@dataclass(kw_only=True, eq=False)
class UpdateWorker(Half):
    """Trains and sends by how much its model moved, averaged over time where `beta` is above 0."""

    kept: ClassVar[tuple[str, ...]] = ("m",)

    beta: float = 0.0
    share: float = 1.0

    def __post_init__(self) -> None:
        self._round = Round(self.share)
        if not 0.0 <= self.beta < 1.0:
            raise ConfigError(f"beta = {self.beta} must be at least 0 and below 1")

    def start(self, x: Params, node: NodeInfo) -> None:
        super().start(x, node)
        self.m = x.zeros_like()

    def turn(self, t: Turn) -> Effects[None]:
        if t.me in self._round.workers(t):
            x, fitted = yield from self._round.train(t, self.x, t.job)
            self.m = self.beta * self.m + (1.0 - self.beta) * (fitted.values - x)
            yield from tell("fitted", [t.server], {"d": self.m.flat, "n": fitted.num_samples})
