"""Global update tracking with quasi-global momentum, QG-GUTm: `gut` with beta > 0; mu = 0 is `qg_dsgdm`, form "aketi".

The mean model obeys  m <- (momentum + mu) m + g - mu g_before,  so that momentum + mu < 1 is needed, and the effective
learning rate is lr (1 - mu) / (1 - momentum - mu). Aketi, Hashemi, Roy, "Global Update Tracking: A Decentralized
Learning Algorithm for Heterogeneous Data", NeurIPS 2023, Algorithm 2: mu = 0.06 for a ring of 16, 0.08 for 32.
Deviations: those of `gut`; no Nesterov form.
Sends one difference. State: public copy, sum of public copies, delta, m.
Status: checked (fixed points; mu = 0 is `qg_dsgdm`; the paper's figures of accuracy were not repeated).
"""

from __future__ import annotations

from tierline.learning.gossip._tracking import Tracking


class Peer(Tracking):
    """With momentum."""

    def __init__(self, *, momentum: float = 0.9, mu: float = 0.06) -> None:
        super().__init__(momentum, mu)
