"""D-PSGD: every peer averages its neighbours' models and takes its own gradient step.

    form = "paper":   x_i <- sum_j w_ij x_j - lr * g_i(x_i)
    form = "adapt":   x_i <- sum_j w_ij (x_j - lr * g_j(x_j))

Lian et al., "Can Decentralized Algorithms Outperform Centralized Algorithms? A Case Study for Decentralized Parallel
Stochastic Gradient Descent", NeurIPS 2017, Algorithm 1 ("paper"). "paper" computes while the models travel; "adapt"
steps first and averages then, which on the complete graph is synchronous SGD.

Deviations: with `within_s` a peer goes on without neighbours that were not heard in time, and adds their weight to its
own. Each row of W then still sums to 1, but the mean over all peers is no longer kept. No momentum. Edges of one
direction are fine where W is doubly stochastic, as in this project it is.
Status: checked (mean and consensus on quadratics, synchronous SGD on the complete graph; the paper's own figures of
accuracy were not repeated).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from tierline.core.arrays import Params
from tierline.core.errors import ConfigError
from tierline.core.types import NodeId
from tierline.learning.effects import Effects, Inbox, Message, exchange, gradient, params
from tierline.learning.rule import NodeInfo, State, Traits, Turn


class Peer:
    """One peer; one model to each neighbour a turn."""

    traits: Traits
    x: Params

    def __init__(self, *, form: Literal["paper", "adapt"] = "paper", within_s: float | None = None) -> None:
        if form not in ("paper", "adapt"):
            raise ConfigError(f'd_psgd: form = {form!r}; valid: "paper", "adapt"')
        self._form = form
        self._within_s = within_s
        lossy = within_s is not None
        self.traits = Traits(
            tolerates_loss=lossy, per_edge_state=False, conserves=None if lossy else "mean", directed=True
        )

    def start(self, x: Params, node: NodeInfo) -> None:
        self.x = x.copy()

    def turn(self, t: Turn) -> Effects[None]:
        if self._form == "adapt":
            g = yield from gradient(self.x, t.batch)
            half = self.x - t.lr * g.values
            got = yield from exchange("x", _to_all(half, t), t.peers_in, within_s=self._within_s)
            self.x = _mix(half, got, t)
        else:
            yield from exchange("x", _to_all(self.x, t), expect=())
            g = yield from gradient(self.x, t.batch)
            got = yield from exchange("x", {}, t.peers_in, within_s=self._within_s)
            self.x = _mix(self.x, got, t)
            self.x.axpy(-t.lr, g.values)

    def resync(self, t: Turn) -> Effects[None]:
        yield from ()

    def state(self) -> State:
        return {"x": self.x.flat.copy()}

    def load(self, state: State) -> None:
        flat = params(state, "x", self.x).flat
        self.x = Params(self.x.layout, flat.copy(), buffers=self.x.buffers)


def _to_all(x: Params, t: Turn) -> dict[NodeId, Message]:
    message: Message = {"x": x.flat}
    return dict.fromkeys(t.peers_out, message)


def _mix(mine: Params, got: Inbox, t: Turn) -> Params:
    """sum_j w_ij x_j over those heard, in the order of their names, so that equal rows of W give equal bits.

    Added up in float64: rounding to float32 happens once, which keeps the mean over all peers from drifting.
    """
    total = np.zeros(mine.flat.shape, np.float64)
    for j in sorted({t.me, *got}):
        if j == t.me:
            silent = sum(t.w[k] for k in sorted(t.peers_in - got.keys()))
            total += (t.w[j] + silent) * mine.flat.astype(np.float64)
        else:
            total += t.w[j] * params(got[j], "x", mine).flat.astype(np.float64)
    return Params(mine.layout, total.astype(np.float32), buffers=mine.buffers)
