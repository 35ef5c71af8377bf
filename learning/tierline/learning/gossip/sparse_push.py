"""Sparse-Push: push-sum of compressed models with error compensation, on edges of one direction.

    z = x / w;   x <- w z - lr u(z);   v = x + e;   q = C(v);   e <- v - q;   send (p q, p w), p = 1 / (1 + hearers)
    x <- x + gamma (sum_in p_j q_j + (p_i - 1) q_i);   w <- w + gamma (sum_in p_j w_j + (p_i - 1) w_i)

Aketi, Singh, Rabaey, "Sparse-Push: Communication- and Energy-Efficient Decentralized Distributed Learning over Directed
and Time-Varying Graphs with non-IID Datasets", 2021. Neither its text nor its code was found: this is what a later
program of the same author does under another name (DeepSqueeze with push-sum). The skew compensation of the paper is
left out: no description of it was found.
Deviations: the senders' p multiplies after decompression, p travelling along, so that p q is not compressed again.
Sends C of one model and two numbers to each hearer. State: x / w, w, e, momentum.
Status: reconstructed (mass; unbiased on an irregular graph).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tierline.core.arrays import Params
from tierline.learning.effects import Effects, Message, exchange, gradient, number
from tierline.learning.gossip._local import Local, check_positive
from tierline.learning.gossip._mixing import like
from tierline.learning.gossip._squeezing import Squeezer
from tierline.learning.rule import NodeInfo, Traits, Turn


class Peer(Local):
    """`x` is the model z, `mass` its weight w, `e` what compression has lost so far."""

    traits = Traits(tolerates_loss=False, per_edge_state=False, conserves="mass", directed=True)
    kept = ("x", "m", "e", "mass")
    parts = ("squeezer",)

    def __init__(
        self,
        *,
        gamma: float = 0.3,
        compressor: str = "topk",
        options: Mapping[str, object] | None = None,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
        check_positive("gamma", gamma)
        self._gamma = gamma
        self.squeezer = Squeezer("sparse_push", compressor, options)

    def start(self, x: Params, node: NodeInfo) -> None:
        super().start(x, node)
        self.e, self.mass = x.zeros_like(), 1.0

    def turn(self, t: Turn) -> Effects[None]:
        g = yield from gradient(self.x, t.batch)
        x = self.mass * self.x - t.lr * self.direction(self.x, g.values)
        v = x + self.e
        share = 1.0 / (1 + len(t.peers_out))
        squeezed, own = self.squeezer.squeeze(t, "q", v)
        self.e = v - own
        message: Message = {**{f"q/{name}": value for name, value in squeezed.items()}, "p": share, "w": self.mass}
        got = yield from exchange("qw", dict.fromkeys(t.peers_out, message), t.peers_in)
        total, weight = (share - 1.0) * own.flat.astype(np.float64), (share - 1.0) * self.mass
        for j, heard in got.items():
            values = {name[2:]: value for name, value in heard.items() if name.startswith("q/")}
            p = number(heard, "p")
            total += p * self.squeezer.expand(t, "q", values, j, own).flat.astype(np.float64)
            weight += p * number(heard, "w")
        self.mass += self._gamma * weight
        self.x = like(x, (x.flat + self._gamma * total) / self.mass)
