"""DeepSqueeze: peers send their compressed models, and add to the next what the compression of this one lost.

    x <- x - lr u;   v = x + e;   q = C(v);   e <- v - q;   x <- x + gamma sum_j w_ij (q_j - q_i)

Tang, Lian, Qiu, Yuan, Zhang, Zhang, Liu, "DeepSqueeze: Decentralization Meets Error-Compensated Compression", 2019,
Algorithm 1. Remembers nothing of its neighbours, but needs a smaller gamma than `choco`: it compresses models, which do
not become small, where CHOCO compresses differences, which do. Deviations: momentum is an option.
Sends C of one model, the same to all. State: e, momentum.
Status: checked (steady errors of the sheet on quadratics).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tierline.core.arrays import Params
from tierline.learning.effects import Effects, exchange, gradient
from tierline.learning.gossip._local import Local, check_positive
from tierline.learning.gossip._mixing import like
from tierline.learning.gossip._squeezing import Squeezer
from tierline.learning.rule import NodeInfo, Traits, Turn


class Peer(Local):
    """`e` is what compression has lost so far; with `feedback = false` it stays 0: plain compressed gossip."""

    traits = Traits(tolerates_loss=False, per_edge_state=False, conserves="mean", directed=True)
    kept = ("x", "m", "e")
    parts = ("squeezer",)

    def __init__(
        self,
        *,
        gamma: float = 0.3,
        compressor: str = "sign",
        options: Mapping[str, object] | None = None,
        feedback: bool = True,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
        check_positive("gamma", gamma)
        self._gamma, self._feedback = gamma, feedback
        self.squeezer = Squeezer("deep_squeeze", compressor, options)

    def start(self, x: Params, node: NodeInfo) -> None:
        super().start(x, node)
        self.e = x.zeros_like()

    def turn(self, t: Turn) -> Effects[None]:
        g = yield from gradient(self.x, t.batch)
        x = self.x - t.lr * self.direction(self.x, g.values)
        v = x + self.e
        message, own = self.squeezer.squeeze(t, "q", v)
        if self._feedback:
            self.e = v - own
        got = yield from exchange("q", dict.fromkeys(t.peers_out, message), t.peers_in)
        total = (t.w[t.me] - 1.0) * own.flat.astype(np.float64)
        for j, m in got.items():
            total += t.w[j] * self.squeezer.expand(t, "q", m, j, own).flat.astype(np.float64)
        self.x = like(x, x.flat + self._gamma * total)
