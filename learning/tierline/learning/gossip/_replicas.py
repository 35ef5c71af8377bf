"""Public copies: what all who hear a peer believe its model to be, moved along by differences.

A peer keeps its own public copy, and the weighted sum of the copies of all whom it hears, itself included; it need not
keep theirs one by one. Sender and receivers add the same float32 differences, so what rounding loses in one difference
is in the next. A missed difference spoils the sum for good: then `resync` exchanges whole copies, of all neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tierline.core.arrays import Params
from tierline.core.types import NodeId
from tierline.learning.effects import Effects, exchange, params
from tierline.learning.errors import RuleError
from tierline.learning.gossip._mixing import like, to_all
from tierline.learning.rule import State, Turn

_ROUNDING = 1e-5
"""Sums that differ by less, of the largest value, differ by the order of their additions."""


class Replicas:
    """`mine` is one's own public copy. All peers start from equal `x`."""

    def __init__(self, x: Params) -> None:
        self.mine = x.copy()
        self._around = x.flat.astype(np.float64)

    def residual(self) -> Params:
        """sum_j w_ij mine_j - mine_i."""
        return like(self.mine, self._around - self.mine.flat)

    def move(self, t: Turn, own: Params, got: Mapping[NodeId, Params]) -> Params:
        """Add everybody's difference to the copies; returns sum_j w_ij difference_j."""
        total = np.zeros(own.flat.shape, np.float64)
        for j in sorted({t.me, *got}):
            total += t.w[j] * (own if j == t.me else got[j]).flat.astype(np.float64)
        self.mine = self.mine + own
        self._around = self._around + total
        return like(self.mine, total)

    def resync(self, t: Turn) -> Effects[None]:
        """Sum the neighbours' copies anew. What differs by rounding alone is left, so that a run that is taken up
        again stays the same run."""
        got = yield from exchange("public", to_all(t, x=self.mine), t.peers_in)
        around = t.w[t.me] * self.mine.flat.astype(np.float64)
        for j in sorted(got):
            around += t.w[j] * params(got[j], "x", self.mine).flat.astype(np.float64)
        if np.abs(around - self._around).max(initial=0.0) > _ROUNDING * np.abs(around).max(initial=0.0):
            self._around = around

    def state(self) -> State:
        return {"mine": self.mine.flat.copy(), "around": self._around.copy()}

    def load(self, state: State) -> None:
        around = state["around"]
        if not isinstance(around, np.ndarray) or around.shape != self._around.shape:
            raise RuleError(f"state: the sum of public copies is not float64{list(self._around.shape)}")
        self.mine = Params(self.mine.layout, params(state, "mine", self.mine).flat.copy(), buffers=self.mine.buffers)
        self._around = around.astype(np.float64)
