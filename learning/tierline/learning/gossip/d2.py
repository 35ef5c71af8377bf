"""D2: each peer also steps along what it moved last time, so that unlike data leave no bias.

    u = -lr g(x);   p = (V - I)(x + u + c);   x <- x + u + c + p;   c <- c + p

with V = (W + I) / 2, or W itself with `lazy = false`.

With a constant lr this is  x'' = V(2 x' - x - lr (g' - g)).  Tang, Lian, Yan, Zhang, Liu, "D2: Decentralized Training
over Decentralized Data", ICML 2018, Algorithm 1; written with c as in Vogels et al., "RelaySum", NeurIPS 2021, so that
the learning rate may change and u may carry momentum.
Deviations: V is lazy by default, since the method needs its smallest eigenvalue above -1/3, which W of an even ring
misses by equality. c is added up from what mixing did, which equals x' - x - u but for rounding: that would make the
mean of all models drift.
Sends one model. State: c, momentum.
Status: checked (exact on unlike quadratics; the plain even ring does not settle).
"""

from __future__ import annotations

from tierline.core.arrays import Params
from tierline.learning.effects import Effects, exchange, gradient
from tierline.learning.gossip._local import Local
from tierline.learning.gossip._mixing import residual, to_all
from tierline.learning.rule import NodeInfo, Traits, Turn


class Peer(Local):
    """`c` is what mixing moved the model by in the last turn, and all turns before."""

    traits = Traits(tolerates_loss=False, per_edge_state=False, conserves="mean", directed=False)
    kept = ("x", "m", "c")

    def __init__(
        self, *, lazy: bool = True, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
    ) -> None:
        super().__init__(momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
        self._strength = 0.5 if lazy else 1.0

    def start(self, x: Params, node: NodeInfo) -> None:
        super().start(x, node)
        self.c = x.zeros_like()

    def turn(self, t: Turn) -> Effects[None]:
        g = yield from gradient(self.x, t.batch)
        u = -t.lr * self.direction(self.x, g.values)
        half = self.x + u + self.c
        got = yield from exchange("x", to_all(t, x=half), t.peers_in)
        pull = self._strength * residual(t, half, got)
        self.c, self.x = self.c + pull, half + pull
