"""D-PSGD: every peer averages its neighbours' models and takes its own gradient step.

    form = "paper":   x_i <- sum_j w_ij x_j - lr * g_i(x_i)
    form = "adapt":   x_i <- sum_j w_ij (x_j - lr * g_j(x_j))

Lian et al., "Can Decentralized Algorithms Outperform Centralized Algorithms? A Case Study for Decentralized Parallel
Stochastic Gradient Descent", NeurIPS 2017, Algorithm 1 ("paper"). "paper" computes while the models travel; "adapt"
steps first and averages then, which on the complete graph is synchronous SGD.

Deviations: with `within_s` a peer goes on without neighbours that were not heard in time, and adds their weight to its
own. Each row of W then still sums to 1, but the mean over all peers is no longer kept. Edges of one direction are fine
where W is doubly stochastic, as in this project it is. Momentum of a peer's own gradients, which the paper lacks, is an
option: the baseline that unlike data hurt most.
Status: checked (mean and consensus on quadratics, synchronous SGD on the complete graph; the paper's own figures of
accuracy were not repeated).
"""

from __future__ import annotations

from typing import Literal

from tierline.core.errors import ConfigError
from tierline.learning.effects import Effects, exchange, gradient
from tierline.learning.gossip._local import Local
from tierline.learning.gossip._mixing import mixed, to_all
from tierline.learning.rule import Traits, Turn


class Peer(Local):
    """One peer; one model to each neighbour a turn."""

    def __init__(
        self,
        *,
        form: Literal["paper", "adapt"] = "paper",
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        within_s: float | None = None,
    ) -> None:
        super().__init__(momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
        if form not in ("paper", "adapt"):
            raise ConfigError(f'd_psgd: form = {form!r}; valid: "paper", "adapt"')
        self._form = form
        self._within_s = within_s
        lossy = within_s is not None
        self.traits = Traits(
            tolerates_loss=lossy, per_edge_state=False, conserves=None if lossy else "mean", directed=True
        )

    def turn(self, t: Turn) -> Effects[None]:
        if self._form == "adapt":
            g = yield from gradient(self.x, t.batch)
            half = self.x - t.lr * self.direction(self.x, g.values)
            got = yield from exchange("x", to_all(t, x=half), t.peers_in, within_s=self._within_s)
            self.x = mixed(t, half, got)
        else:
            yield from exchange("x", to_all(t, x=self.x), expect=())
            g = yield from gradient(self.x, t.batch)
            got = yield from exchange("x", {}, t.peers_in, within_s=self._within_s)
            step = self.direction(self.x, g.values)
            self.x = mixed(t, self.x, got)
            self.x.axpy(-t.lr, step)
