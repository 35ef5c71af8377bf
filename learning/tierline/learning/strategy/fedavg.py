"""Federated averaging: some workers train from the server's model, and the mean of what they get is the next model.

    x <- sum_k n_k x_k / sum_k n_k,    x_k = E epochs of SGD from x on worker k's n_k samples

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017, Algorithm 1:
`share` is its C; epochs E, batch B and learning rate are those of the experiment's job.
Deviations: the mean is over the workers that took part, in fixed point (2^-32), so that no order of arrival and no
pre-adding on the way changes a bit. With `quorum` or `within_s` a round goes on without the slow. Tensors that are not
trained stay as the server has them.
Status: checked (against the formula; one full-batch step per worker equals gradient descent on the pooled samples).
"""

from __future__ import annotations

from tierline.core.arrays import Params
from tierline.learning.effects import Effects, collect, contribute, fit, hear, params, tell
from tierline.learning.half import Half
from tierline.learning.rule import Turn
from tierline.learning.strategy._select import check_share, chosen


class Server(Half):
    """Holds the model."""

    kept = ("x",)

    def __init__(self, *, share: float = 1.0, quorum: int | None = None, within_s: float | None = None) -> None:
        self._share = check_share("fedavg", share)
        self._quorum, self._within_s = quorum, within_s

    def turn(self, t: Turn) -> Effects[None]:
        group = chosen(t, self._share)
        yield from tell("model", group, {"x": self.x.flat})
        got = yield from collect("fitted", self.x, group, [t.server], quorum=self._quorum, within_s=self._within_s)
        self.x = Params(self.x.layout, got.mean.flat, buffers=self.x.buffers)


class Worker(Half):
    """Trains; remembers nothing."""

    def __init__(self, *, share: float = 1.0) -> None:
        self._share = check_share("fedavg", share)

    def turn(self, t: Turn) -> Effects[None]:
        group = chosen(t, self._share)
        if t.me not in group:
            return
        model = yield from hear("model", t.server)
        fitted = yield from fit(params(model, "x", self.x), t.job)
        yield from contribute("fitted", fitted.values, group, [t.server], weight=fitted.num_samples)
