"""Gradient tracking: beside the model, peers average a running estimate of everybody's gradient.

    y <- y + g(x) - g_before  (y = g at first);   send (x, y);   x <- W x - lr y;   y <- W y

The mean of y is always the mean gradient, so that unlike data leave no bias. Lorenzo, Scutari, "NEXT: In-Network
Nonconvex Optimization", IEEE Trans. Signal and Information Processing over Networks 2016; Nedic, Olshevsky, Shi,
"Achieving Geometric Convergence for Distributed Optimization over Time-Varying Graphs", SIAM J. Optimization 2017
(DIGing); the order of steps is that of the experiments of Lin et al., ICML 2021: the y before mixing is applied.
Deviations: none known.
Sends two models. State: y, last gradient.
Status: checked (exact on unlike quadratics; mean of y is the mean gradient).
"""

from __future__ import annotations

from tierline.core.arrays import Params
from tierline.learning.effects import Effects, exchange, gradient
from tierline.learning.gossip._local import Gossip
from tierline.learning.gossip._mixing import mixed, to_all
from tierline.learning.rule import NodeInfo, Traits, Turn


class Peer(Gossip):
    """`y` tracks the mean gradient, `g` is the last own one."""

    traits = Traits(tolerates_loss=False, per_edge_state=False, conserves="mean", directed=True)
    kept = ("x", "y", "g")

    def start(self, x: Params, node: NodeInfo) -> None:
        super().start(x, node)
        self.y, self.g = x.zeros_like(), x.zeros_like()

    def turn(self, t: Turn) -> Effects[None]:
        g = (yield from gradient(self.x, t.batch)).values
        y = self.y + g - self.g
        got = yield from exchange("xy", to_all(t, x=self.x, y=y), t.peers_in)
        self.x = mixed(t, self.x, got) - t.lr * y
        self.y, self.g = mixed(t, y, got, "y"), g
