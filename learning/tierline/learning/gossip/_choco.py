"""Gossip on public copies that compressed differences move; see `choco` for the equations."""

from __future__ import annotations

from collections.abc import Mapping

from tierline.core.arrays import Params
from tierline.learning.effects import Effects, exchange, gradient
from tierline.learning.gossip._local import Local, check_positive
from tierline.learning.gossip._replicas import Replicas
from tierline.learning.gossip._squeezing import Squeezer
from tierline.learning.rule import NodeInfo, Traits, Turn


class Choco(Local):
    """`gamma` is the step towards consensus: the stronger the compression, the smaller."""

    traits = Traits(tolerates_loss=False, per_edge_state=True, conserves="mean", directed=True)
    parts = ("replicas", "squeezer")

    def __init__(
        self,
        *,
        gamma: float,
        compressor: str,
        options: Mapping[str, object] | None,
        ahead: bool = False,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
        check_positive("gamma", gamma)
        self._gamma, self._ahead = gamma, ahead
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
