"""Extrapolated SGD: each peer looks ahead along its own last gradient before it computes the next; all then step alike.

    g_k <- grad f_k(x - ahead lr g_k);   x <- x - lr u(mean_k g_k)

the g_k on the right being that of the turn before. Lin, Kong, Stich, Jaggi, "Extrapolation for Large-batch Training in
Deep Learning", ICML 2020. ahead = 0 is synchronous SGD, to the bit.
Deviations: from memory of the paper, no code was found. The look-ahead is a fraction of the learning rate, so that it
follows its schedule; the Nesterov form looks ahead from x, not from x after the momentum.
Sends one gradient to a sum. State: last own gradient, momentum.
Status: reconstructed (ahead = 0 only).
"""

from __future__ import annotations

from tierline.core.arrays import Params
from tierline.core.errors import ConfigError
from tierline.learning.effects import Effects, gradient, reduce
from tierline.learning.gossip._local import Local
from tierline.learning.rule import NodeInfo, Traits, Turn


class Peer(Local):
    """`g` is the last own gradient. The topology's edges are not used."""

    traits = Traits(tolerates_loss=False, per_edge_state=False, conserves=None, directed=True)
    kept = ("x", "m", "g")

    def __init__(
        self, *, ahead: float = 0.1, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
    ) -> None:
        super().__init__(momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
        if ahead < 0.0:
            raise ConfigError(f"extrap_sgd: ahead = {ahead} must be at least 0")
        self._ahead = ahead

    def start(self, x: Params, node: NodeInfo) -> None:
        super().start(x, node)
        self.g = x.zeros_like()

    def turn(self, t: Turn) -> Effects[None]:
        at = self.x - (self._ahead * t.lr) * self.g if self._ahead else self.x
        self.g = (yield from gradient(at, t.batch)).values
        total = yield from reduce("g", self.g, t.nodes)
        self.x = self.x - t.lr * self.direction(self.x, total.mean)
