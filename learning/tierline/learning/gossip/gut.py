"""Global update tracking: the whole update, gradient and mixing, of the neighbourhood is tracked by model differences.

    send  dx = x - x_before;   r = W x - x
    delta = g(x) - r / lr;   a = W dx + (1 + beta) r_before
    y = delta - mu / lr a - mu delta_before;   m <- beta m + y;   x <- x - lr m

with beta = 0 here; `qg_gut` adds momentum. mu = 0 is D-PSGD. Aketi, Hashemi, Roy, "Global Update Tracking: A
Decentralized Learning Algorithm for Heterogeneous Data", NeurIPS 2023, Algorithm 1.
On quadratics the bias of D-PSGD shrinks, by the factor 1 - mu roughly, but does not vanish. It is stable only while
lr L < (1 + lmin (1 + 2 mu)) / (1 + mu), L the largest curvature and lmin the smallest eigenvalue of W: with mu = 0.9 on
an even ring, lr L < 0.035. A `lazy_ring` lifts that.
Deviations: the authors' gamma, which perturbs where the gradient is taken, is left at 1 without perturbation. delta and
m are kept as steps; when the learning rate changes they are scaled by the ratio, which is what dividing by the rate of
the step before does. All peers start from the same model.
Sends one difference. State: public copy, sum of public copies, delta, m.
Status: checked (the limit of stability; fixed points; mu = 0 is D-PSGD).
"""

from __future__ import annotations

from tierline.learning.gossip._tracking import Tracking


class Peer(Tracking):
    """Without momentum."""

    def __init__(self, *, mu: float = 0.9) -> None:
        super().__init__(0.0, mu)
