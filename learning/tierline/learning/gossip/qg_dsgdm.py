"""Quasi-global momentum: the momentum is built from how the model moved, mixing included, not from own gradients.

    form = "lin":     u = g + beta m;  x' = W(x - lr u);  m <- mu m + (1 - mu)(x - x') / lr
    form = "aketi":   m <- beta m + g - r / lr;  x <- x - lr m,      r = W x - x, the gossip residual
    form = "adam":    x' = W(x - lr adam(g, m, v));  d = (x - x') / |x - x'|;
                      m <- beta m + (1 - beta) d;  v <- beta2 v + (1 - beta2) d^2

Lin, Karimireddy, Stich, Jaggi, "Quasi-Global Momentum: Accelerating Decentralized Deep Learning on Heterogeneous Data",
ICML 2021, Algorithm 1 (lin, which with Nesterov steps along g + beta u; mu = 0.9 is a factor of its own in the authors'
code) and Algorithm 2 (adam); the heavy-ball form as in Aketi, Hashemi, Roy, "Global Update Tracking", NeurIPS 2023,
Algorithm 2 without tracking.
Deviations: m is kept as a step, lr m, so that lr = 0 mixes. The update of m every tau steps is left out. adam: the
local step is  lr (beta m + (1 - beta) g) / (sqrt(beta2 v + (1 - beta2) g^2) + eps)  with both biases corrected by the
number of turns, Adam's usual weights; the authors' code adds g to m with weight 1.
Sends one model. State: m (and v).
Status: checked (lin, aketi: the sheet's fixed points on quadratics); reconstructed (adam).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from tierline.core.arrays import Params
from tierline.core.errors import ConfigError
from tierline.learning.effects import Effects, exchange, gradient
from tierline.learning.gossip._local import Gossip, check_share
from tierline.learning.gossip._mixing import mixed, ratio, residual, to_all
from tierline.learning.rule import NodeInfo, Traits, Turn

_EPS = 1e-8


class Peer(Gossip):
    """`m` is the momentum as a step (form "adam": without the learning rate), `v` the second moment of "adam"."""

    traits = Traits(tolerates_loss=False, per_edge_state=False, conserves="mean", directed=True)
    kept = ("x", "m", "v", "lr")

    def __init__(
        self,
        *,
        form: Literal["lin", "aketi", "adam"] = "lin",
        momentum: float = 0.9,
        nesterov: bool = False,
        mu: float = 0.9,
        beta2: float = 0.99,
        weight_decay: float = 0.0,
    ) -> None:
        if form not in ("lin", "aketi", "adam"):
            raise ConfigError(f'qg_dsgdm: form = {form!r}; valid: "lin", "aketi", "adam"')
        for name, value in (("momentum", momentum), ("mu", mu), ("beta2", beta2)):
            check_share(name, value)
        self._form, self._momentum, self._nesterov = form, momentum, nesterov
        self._mu, self._beta2, self._weight_decay = mu, beta2, weight_decay

    def start(self, x: Params, node: NodeInfo) -> None:
        super().start(x, node)
        self.m, self.v, self.lr = x.zeros_like(), x.zeros_like(), 0.0

    def turn(self, t: Turn) -> Effects[None]:
        if self._form == "aketi":
            yield from exchange("x", to_all(t, x=self.x), expect=())
        g = (yield from gradient(self.x, t.batch)).values
        if self._weight_decay:
            g = g + self._weight_decay * self.x
        if self._form == "aketi":
            yield from self._heavy_ball(t, g)
        elif self._form == "lin":
            yield from self._lin(t, g)
        else:
            yield from self._adam(t, g)

    def _lin(self, t: Turn, g: Params) -> Effects[None]:
        m = ratio(t.lr, self.lr) * self.m
        step = self._momentum * m + t.lr * g
        if self._nesterov:
            step = t.lr * g + self._momentum * step
        half = self.x - step
        got = yield from exchange("x", to_all(t, x=half), t.peers_in)
        moved = mixed(t, half, got)
        self.m = self._mu * m + (1.0 - self._mu) * (self.x - moved)
        self.x, self.lr = moved, t.lr

    def _heavy_ball(self, t: Turn, g: Params) -> Effects[None]:
        got = yield from exchange("x", {}, t.peers_in)
        scale = ratio(t.lr, self.lr)
        pull = residual(t, self.x, got)
        self.m = self._momentum * scale * self.m + t.lr * g - scale * pull
        step = t.lr * g - scale * pull + self._momentum * self.m if self._nesterov else self.m
        self.x, self.lr = self.x - step, t.lr

    def _adam(self, t: Turn, g: Params) -> Effects[None]:
        num = t.round + 1
        first = self._momentum * self.m + (1.0 - self._momentum) * g
        second = self._beta2 * self.v + (1.0 - self._beta2) * (g * g)
        scale = np.sqrt(second.flat / (1.0 - self._beta2**num)) + _EPS
        step = first.flat / (1.0 - self._momentum**num) / scale
        half = self.x - t.lr * Params(self.x.layout, step.astype(np.float32))
        got = yield from exchange("x", to_all(t, x=half), t.peers_in)
        moved = mixed(t, half, got)
        way = self.x - moved
        length = way.norm()
        d = (1.0 / length) * way if length > 0.0 else way
        self.m = self._momentum * self.m + (1.0 - self._momentum) * d
        self.v = self._beta2 * self.v + (1.0 - self._beta2) * (d * d)
        self.x = moved
