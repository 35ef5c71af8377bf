"""CHOCO-SGD: peers gossip on public copies of their models, and send compressed differences to them.

    order = "paper":  x <- x - lr u;  q = C(x - x^);  send q;  x^ += q (everybody's);  x <- x + gamma sum_j w_ij (x^_j - x^_i)
    order = "ahead":  x <- x - lr u + gamma sum_j w_ij (x^_j - x^_i);  q = C(x - x^);  send q;  x^ += q

Any compressor that contracts will do, and the consensus is exact in the limit; with the identity and gamma = 1 it is
D-PSGD ("paper": its form "adapt"; "ahead": its form "paper", mixing what the round before sent). Koloskova, Stich,
Jaggi, "Decentralized Stochastic Optimization and Gossip Algorithms with Compressed Communication", ICML 2019, Algorithm
2; Koloskova, Lin, Stich, Jaggi, "Decentralized Deep Learning with Arbitrary Communication Compression", ICLR 2020,
whose published code has the order "ahead".
Deviations: copies begin at the common first model, as in the code for convex problems, not at 0.
Sends C of one model, the same to all. State: own public copy and the weighted sum of the neighbours', momentum.
Status: checked (identity; steady errors of the sheet; exact mean without gradients).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from tierline.core.arrays import Params
from tierline.core.errors import ConfigError
from tierline.learning.effects import Effects, exchange, gradient
from tierline.learning.gossip._local import Local, check_positive
from tierline.learning.gossip._replicas import Replicas
from tierline.learning.gossip._squeezing import Squeezer
from tierline.learning.rule import NodeInfo, Traits, Turn


class Peer(Local):
    """`gamma` is the step towards consensus: the stronger the compression, the smaller."""

    traits = Traits(tolerates_loss=False, per_edge_state=True, conserves="mean", directed=True)
    parts = ("replicas", "squeezer")

    def __init__(
        self,
        *,
        gamma: float = 0.5,
        compressor: str = "sign",
        options: Mapping[str, object] | None = None,
        order: Literal["paper", "ahead"] = "paper",
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
        check_positive("gamma", gamma)
        if order not in ("paper", "ahead"):
            raise ConfigError(f'choco: order = {order!r}; valid: "paper", "ahead"')
        self._gamma, self._ahead = gamma, order == "ahead"
        self.squeezer = Squeezer("choco", compressor, options)

    def start(self, x: Params, node: NodeInfo) -> None:
        super().start(x, node)
        self.replicas = Replicas(x)

    def turn(self, t: Turn) -> Effects[None]:
        g = yield from gradient(self.x, t.batch)
        x = self.x - t.lr * self.direction(self.x, g.values)
        if self._ahead:
            x = x + self.towards_others()
        message, own = self.squeezer.squeeze(t, "q", x - self.replicas.mine)
        got = yield from exchange("q", dict.fromkeys(t.peers_out, message), t.peers_in)
        self.replicas.move(t, own, {j: self.squeezer.expand(t, "q", m, j, own) for j, m in got.items()})
        self.x = x if self._ahead else x + self.towards_others()

    def towards_others(self) -> Params:
        """The consensus step."""
        return self._gamma * self.replicas.residual()

    def resync(self, t: Turn) -> Effects[None]:
        yield from self.replicas.resync(t)
