"""Stochastic gradient push: sums and their weights travel together, so that edges may have one direction.

    z_i = x_i / w_i;   x_i <- x_i - lr * g_i(z_i);   send (p_i x_i, p_i w_i), p_i = 1 / (1 + number of hearers)
    x_i <- p_i x_i + sum of the x received;   w_i likewise

The sum of all x (without gradients) and the sum of all w (= number of nodes) never change; z_i is the model.
Assran, Loizou, Ballas, Rabbat, "Stochastic Gradient Push for Distributed Deep Learning", ICML 2019, Algorithm 1.
Deviations: p_i is the sender's own, so the topology's weights are not used. The overlapped form with bounded delay is
left out. With `within_s` a peer goes on without a neighbour that was not heard in time, and adds as much of its own
(x, w) as it gives away to one: mass is then no longer kept, but weights stay near 1 instead of fading.
Sends one model and one number to each hearer. State: z, w, momentum.
Status: checked (mass; the uniform mean on irregular graphs, where averaging with sender's weights alone is biased).
"""

from __future__ import annotations

import numpy as np

from tierline.core.arrays import Params
from tierline.learning.effects import Effects, exchange, gradient, number, params
from tierline.learning.gossip._local import Local
from tierline.learning.gossip._mixing import like, to_all
from tierline.learning.rule import NodeInfo, Traits, Turn


class Peer(Local):
    """`x` is the model z, `mass` its weight w."""

    kept = ("x", "m", "mass")

    def __init__(
        self,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        within_s: float | None = None,
    ) -> None:
        super().__init__(momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
        self._within_s = within_s
        lossy = within_s is not None
        self.traits = Traits(
            tolerates_loss=lossy, per_edge_state=False, conserves=None if lossy else "mass", directed=True
        )

    def start(self, x: Params, node: NodeInfo) -> None:
        super().start(x, node)
        self.mass = 1.0

    def turn(self, t: Turn) -> Effects[None]:
        g = yield from gradient(self.x, t.batch)
        half = self.mass * self.x - t.lr * self.direction(self.x, g.values)
        share = 1.0 / (1 + len(t.peers_out))
        sent, mass = share * half, share * self.mass
        got = yield from exchange("xw", to_all(t, x=sent, w=mass), t.peers_in, within_s=self._within_s)
        num_own = 1 + len(t.peers_in - got.keys())
        total, weight = num_own * sent.flat.astype(np.float64), num_own * mass
        for message in got.values():
            total += params(message, "x", self.x).flat
            weight += number(message, "w")
        self.x, self.mass = like(self.x, total / weight), weight
