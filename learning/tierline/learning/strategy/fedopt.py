"""Federated averaging whose mean update is the gradient of an adaptive optimiser at the server.

    d = mean_k(x_k) - x;   m <- b1 m + (1 - b1) d
    adagrad:  v <- v + d^2      yogi:  v <- v - (1 - b2) d^2 sign(v - d^2)      adam:  v <- b2 v + (1 - b2) d^2
    x <- x + server_lr m / (sqrt(v) + tau)

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, Algorithm 2; v starts at tau^2, m at 0, and nothing corrects
their bias, as there.
Deviations: updates are weighted by samples.
Status: checked (each form against its formula written out in NumPy).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from tierline.core.arrays import Params
from tierline.core.errors import ConfigError
from tierline.learning.effects import Effects
from tierline.learning.half import Half
from tierline.learning.rule import NodeInfo, Turn
from tierline.learning.strategy._rounds import PlainWorker, Round, WithinOption, moved


class Server(Half):
    """Holds the model, and the optimiser's two moments."""

    kept = ("x", "m", "v")

    def __init__(
        self,
        *,
        form: Literal["adam", "yogi", "adagrad"] = "adam",
        server_lr: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        tau: float = 1e-3,
        share: float = 1.0,
        quorum: int | None = None,
        within_s: WithinOption = None,
        max_samples: int | None = None,
    ) -> None:
        if form not in ("adam", "yogi", "adagrad"):
            raise ConfigError(f'fedopt: form = {form!r}; valid: "adam", "yogi", "adagrad"')
        if not (server_lr > 0.0 and tau > 0.0 and 0.0 <= beta_1 < 1.0 and 0.0 <= beta_2 < 1.0):
            raise ConfigError("fedopt: server_lr and tau must be above 0, beta_1 and beta_2 in [0, 1)")
        self._form, self._lr, self._beta_1, self._beta_2, self._tau = form, server_lr, beta_1, beta_2, tau
        self._round = Round(share, quorum, within_s, max_samples)

    def start(self, x: Params, node: NodeInfo) -> None:
        super().start(x, node)
        self.m, self.v = x.zeros_like(), x.zeros_like()
        self.v.flat += np.float32(self._tau**2)

    def turn(self, t: Turn) -> Effects[None]:
        got = yield from self._round.gather(t, self.x)
        d = got.mean.flat - self.x.flat
        m, v, square = self.m.flat, self.v.flat, d * d
        m += np.float32(1 - self._beta_1) * (d - m)
        if self._form == "adagrad":
            v += square
        elif self._form == "yogi":
            v -= np.float32(1 - self._beta_2) * square * np.sign(v - square)
        else:
            v += np.float32(1 - self._beta_2) * (square - v)
        self.x = moved(self.x, self.x.flat + np.float32(self._lr) * m / (np.sqrt(v) + np.float32(self._tau)))


class Worker(PlainWorker):
    """As in `fedavg`."""
