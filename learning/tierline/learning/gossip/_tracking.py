"""The step that `gut` and `qg_gut` share; see there for the equations."""

from __future__ import annotations

from tierline.core.arrays import Params
from tierline.core.errors import ConfigError
from tierline.learning.effects import Effects, exchange, gradient, params
from tierline.learning.gossip._local import Gossip, check_share
from tierline.learning.gossip._mixing import ratio, to_all
from tierline.learning.gossip._replicas import Replicas
from tierline.learning.rule import NodeInfo, Traits, Turn


class Tracking(Gossip):
    """`delta` and `m` are kept as steps (times lr), so that lr = 0 mixes."""

    traits = Traits(tolerates_loss=False, per_edge_state=True, conserves="mean", directed=True)
    kept = ("x", "delta", "m", "lr")
    parts = ("replicas",)

    def __init__(self, beta: float, mu: float) -> None:
        check_share("momentum", beta)
        check_share("mu", mu)
        if not beta + mu < 1.0:
            raise ConfigError(f"gut: momentum + mu = {beta + mu:g} must be below 1; the mean model diverges otherwise")
        self._beta, self._mu = beta, mu

    def start(self, x: Params, node: NodeInfo) -> None:
        super().start(x, node)
        self.replicas = Replicas(x)
        self.delta, self.m, self.lr = x.zeros_like(), x.zeros_like(), 0.0

    def turn(self, t: Turn) -> Effects[None]:
        own = self.x - self.replicas.mine
        got = yield from exchange("dx", to_all(t, dx=own), t.peers_in)
        before = self.replicas.residual()
        moved = self.replicas.move(t, own, {j: params(message, "dx", own) for j, message in got.items()})
        g = (yield from gradient(self.x, t.batch)).values
        scale = ratio(t.lr, self.lr)
        delta = t.lr * g - scale * self.replicas.residual()
        moved = moved + (1.0 + self._beta) * before
        y = delta - (self._mu * scale) * (moved + self.delta)
        self.m = (self._beta * scale) * self.m + y
        self.delta, self.lr = delta, t.lr
        self.x = self.x - self.m

    def resync(self, t: Turn) -> Effects[None]:
        yield from self.replicas.resync(t)
