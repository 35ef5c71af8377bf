"""Federated averaging with control variates: each worker corrects its steps by how its gradients differ from all's.

    y <- y - lr (g_k(y) - c_k + c)  for K steps from x;   c_k' = c_k - c + (x - y) / (K lr)
    x <- x + server_lr mean_k (y_k - x);   c <- c + (1 / N) sum_k (c_k' - c_k)

Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020, Algorithm 1,
option II; the mean is over those who took part, N counts all workers. Messages carry two vectors each way.
Deviations: none; local steps must be plain SGD without momentum, since c_k' reads the mean gradient off the way gone.
Status: checked (against the formula; reaches the optimum of unlike quadratics where `fedavg` does not).
"""

from __future__ import annotations

import dataclasses

from tierline.core.arrays import Params
from tierline.core.errors import ConfigError
from tierline.learning.effects import Effects, fit, hear, params
from tierline.learning.half import Half
from tierline.learning.rule import NodeInfo, Turn
from tierline.learning.strategy._rounds import Round, WithinOption, joined, moved, part_of


class Server(Half):
    """Holds the model and the mean control variate."""

    kept = ("x", "c")

    def __init__(
        self,
        *,
        server_lr: float = 1.0,
        share: float = 1.0,
        quorum: int | None = None,
        within_s: WithinOption = None,
    ) -> None:
        self._round, self._lr = Round(share, quorum, within_s), server_lr

    def start(self, x: Params, node: NodeInfo) -> None:
        super().start(x, node)
        self.c = x.zeros_like()

    def turn(self, t: Turn) -> Effects[None]:
        got = yield from self._round.gather(t, self.x, self.c, like=joined(x=self.x, c=self.c))
        share = len(got.members) / len(t.workers)
        self.c = self.c + share * part_of(got.mean, "c", self.c)
        self.x = moved(self.x, (self.x + self._lr * part_of(got.mean, "x", self.x)).flat)


class Worker(Half):
    """Trains with the correction, and remembers its control variate."""

    kept = ("c",)

    def __init__(self, *, share: float = 1.0) -> None:
        self._round = Round(share)

    def start(self, x: Params, node: NodeInfo) -> None:
        super().start(x, node)
        self.c = x.zeros_like()

    def turn(self, t: Turn) -> Effects[None]:
        if t.me not in self._round.workers(t):
            return
        if t.job.optimizer != "sgd" or t.job.momentum or not t.lr > 0.0:
            raise ConfigError("scaffold: local steps must be sgd without momentum, with lr above 0")
        message = yield from hear("model", t.server)
        x, c = params(message, "x", self.x), params(message, "x0", self.x)
        fitted = yield from fit(x, dataclasses.replace(t.job, correction=c - self.c))
        change = (1.0 / (fitted.num_steps * t.lr)) * (x - fitted.values) - c
        self.c = self.c + change
        yield from self._round.send(t, joined(x=fitted.values - x, c=change), 1.0)
