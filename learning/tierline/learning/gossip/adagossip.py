"""AdaGossip: CHOCO-SGD whose step towards consensus is set per value, by how large that value's residuals were.

    r_i = sum_j w_ij x^_j - x^_i;   v <- rho v + (1 - rho) r^2;   x <- x + min(1, gamma / s) r;
    s = sqrt(v / (1 - rho^t)) + eps

elementwise. Aketi, Hashemi, Roy, "AdaGossip: Adaptive Consensus Step-size for Decentralized Deep Learning with
Communication Compression", 2024, as the author's code has it.
Deviations: as for `choco`, here in the paper's order. Unlike CHOCO's, the step does not keep the mean of all models,
since peers' v differ.
Sends C of one model, the same to all. State: that of `choco`, and v.
Status: partial (equation; the paper's figures of accuracy were not repeated).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tierline.core.arrays import Params
from tierline.learning.gossip._choco import Choco
from tierline.learning.gossip._local import check_share
from tierline.learning.gossip._mixing import like
from tierline.learning.rule import NodeInfo, Traits

_EPS = 1e-8


class Peer(Choco):
    """`v` is the second moment of the residuals."""

    traits = Traits(tolerates_loss=False, per_edge_state=True, conserves=None, directed=True)
    kept = ("x", "m", "v", "num_steps")

    def __init__(
        self,
        *,
        gamma: float = 0.1,
        rho: float = 0.999,
        compressor: str = "sign",
        options: Mapping[str, object] | None = None,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            gamma=gamma,
            compressor=compressor,
            options=options,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
        )
        check_share("rho", rho)
        self._rho = rho

    def start(self, x: Params, node: NodeInfo) -> None:
        super().start(x, node)
        self.v, self.num_steps = x.zeros_like(), 0

    def towards_others(self) -> Params:
        """The consensus step; remembers the residuals' size."""
        r = self.replicas.residual()
        self.num_steps += 1
        self.v = self._rho * self.v + (1.0 - self._rho) * (r * r)
        size = np.sqrt(self.v.flat.astype(np.float64) / (1.0 - self._rho**self.num_steps))
        return like(r, np.minimum(1.0, self._gamma / (size + _EPS)) * r.flat)
