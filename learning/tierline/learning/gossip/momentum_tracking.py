"""Momentum tracking: peers with local momentum share how far theirs is from everybody's, and correct for it.

    send (x, c - u);   x <- W x;   c <- W(c - u) + u;   u <- beta u + g(x);   x <- x - lr (u - c)

The mean of c stays 0 and u - c tends to the mean momentum, so that unlike data leave no bias. Takezawa, Bao, Niwa,
Sato, Yamada, "Momentum Tracking: Momentum Acceleration for Decentralized Deep Learning on Heterogeneous Data", TMLR
2023, Algorithm 1, in the order of steps of a public implementation: the gradient is taken at the mixed model.
Deviations: none known.
Sends two models. State: c, u.
Status: checked (exact on unlike quadratics; the paper's figures of accuracy were not repeated).
"""

from __future__ import annotations

from tierline.core.arrays import Params
from tierline.learning.effects import Effects, exchange, gradient
from tierline.learning.gossip._local import Gossip, check_share
from tierline.learning.gossip._mixing import mixed, to_all
from tierline.learning.rule import NodeInfo, Traits, Turn


class Peer(Gossip):
    """`u` is the momentum, `c` the correction."""

    traits = Traits(tolerates_loss=False, per_edge_state=False, conserves="mean", directed=True)
    kept = ("x", "u", "c")

    def __init__(self, *, momentum: float = 0.9) -> None:
        check_share("momentum", momentum)
        self._momentum = momentum

    def start(self, x: Params, node: NodeInfo) -> None:
        super().start(x, node)
        self.u, self.c = x.zeros_like(), x.zeros_like()

    def turn(self, t: Turn) -> Effects[None]:
        apart = self.c - self.u
        got = yield from exchange("xc", to_all(t, x=self.x, c=apart), t.peers_in)
        x = mixed(t, self.x, got)
        c = mixed(t, apart, got, "c") + self.u
        g = yield from gradient(x, t.batch)
        u = self._momentum * self.u + g.values
        self.x, self.u, self.c = x - t.lr * (u - c), u, c
