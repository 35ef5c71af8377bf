"""CHOCO-SGD: peers gossip on public copies of their models, and send compressed differences to them.

    order = "paper":  x <- x - lr u;  q = C(x - x^);  send q;  x^ += q (everybody's);  x <- x + gamma r
    order = "ahead":  x <- x - lr u + gamma r;  q = C(x - x^);  send q;  x^ += q

with r_i = sum_j w_ij (x^_j - x^_i).

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

from tierline.core.errors import ConfigError
from tierline.learning.gossip._choco import Choco


class Peer(Choco):
    """`gamma` is the step towards consensus: the stronger the compression, the smaller."""

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
        if order not in ("paper", "ahead"):
            raise ConfigError(f'choco: order = {order!r}; valid: "paper", "ahead"')
        super().__init__(
            gamma=gamma,
            compressor=compressor,
            options=options,
            ahead=order == "ahead",
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
        )
