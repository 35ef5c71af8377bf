"""Averages only where models have drifted: workers watch their own distance from the last common average.

Every turn each worker trains (b mini-batches: the job's `num_steps`) and checks |x_k - r|^2 <= delta. If all hold,
nothing moves. Violators send their models; the server adds further workers at random until the mean of those it has is
within delta of r, or it has all; the mean goes to those it has, and becomes r where these are all. Violations add up,
and m of them since the last full average force one. So  (1/m) sum_k |x_k - r|^2 <= delta  after every turn.
Kamp et al., "Efficient Decentralized Deep Learning by Dynamic Model Averaging", ECML PKDD 2018, the
dynamic averaging protocol.
Deviations: the set grows by twice its size each time, as in the authors' dlplatform; means are weighted by samples and
in fixed point, so that delta = 0 is `fedavg` with all workers, bit for bit.
Status: checked (delta = 0 against `fedavg`; the bound on the distance; fewer bytes for larger delta).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tierline.core.arrays import Params
from tierline.core.errors import BadFrame, ConfigError
from tierline.core.types import NodeId
from tierline.learning.effects import Effects, Inbox, Message, exchange, fit, hear, number, params, tell
from tierline.learning.fixed import WeightedSum, contribution
from tierline.learning.half import Half
from tierline.learning.rule import NodeInfo, Turn
from tierline.learning.strategy._whole import accepted, finite, num_samples


class Server(Half):
    """Balances violations; `x` is r."""

    kept = ("x", "num_violations")

    def __init__(self, *, delta: float = 0.1) -> None:
        self._delta = _checked(delta)
        self.num_violations = 0

    def turn(self, t: Turn) -> Effects[None]:
        checks = yield from exchange("check", {}, t.workers)
        heard = [k for k, message in checks.items() if message]
        known = self._usable(t, {k: checks[k] for k in heard})
        order = t.rng("order").permutation(len(t.workers))
        rest = [k for k in (t.workers[i] for i in order) if k not in heard]
        asked: list[NodeId] = []
        self.num_violations += len(known)
        mean = self._mean(known)
        while rest and known and (self._is_far(mean) or self.num_violations >= len(t.workers)):
            more, rest = rest[: 2 * len(known)], rest[2 * len(known) :]
            asked += more
            heard += more
            known |= self._usable(t, (yield from exchange("model", {k: {"ask": 1} for k in more}, more)))
            mean = self._mean(known)
        if not known and not rest:
            raise BadFrame("dynamic_averaging: all models overflow a sum or are not finite; a smaller lr may help")
        full = bool(known) and not rest
        message: Message = {"x": mean.flat, "full": int(full)}
        yield from tell("model", [k for k in t.workers if k not in asked], {})
        yield from tell("mean", heard, message)
        if full:
            self.x, self.num_violations = mean, 0

    def _usable(self, t: Turn, got: Inbox) -> dict[NodeId, WeightedSum]:
        """Bad models are refused with a warning; their workers hear the mean all the same."""

        def read(_: NodeId, message: Message) -> WeightedSum:
            value, num = finite(message, "x", self.x), num_samples(message, None)
            return contribution(value, weight=num, num_members=len(t.workers), where="model")

        return accepted(t, got, read)

    def _mean(self, known: Mapping[NodeId, WeightedSum]) -> Params:
        if not known:
            return self.x
        parts = list(known.values())
        total = parts[0]
        for part in parts[1:]:
            total += part
        return Params(self.x.layout, total.mean().astype(np.float32), buffers=self.x.buffers)

    def _is_far(self, mean: Params) -> bool:
        gap = mean - self.x
        return gap.dot(gap) > self._delta


class Worker(Half):
    """Trains on from its own model."""

    kept = ("x", "r")

    def __init__(self, *, delta: float = 0.1) -> None:
        self._delta = _checked(delta)

    def start(self, x: Params, node: NodeInfo) -> None:
        super().start(x, node)
        self.r = x.copy()

    def turn(self, t: Turn) -> Effects[None]:
        fitted = yield from fit(self.x, t.job)
        self.x = fitted.values
        gap = self.x - self.r
        far = not gap.dot(gap) <= self._delta  # what is not finite is far, too
        mine: Message = {"x": self.x.flat, "n": fitted.num_samples}
        yield from tell("check", [t.server], mine if far else {})
        answer = yield from hear("model", t.server)
        if answer:
            yield from tell("model", [t.server], mine)
        if far or answer:
            mean = yield from hear("mean", t.server)
            self.x = Params(self.x.layout, params(mean, "x", self.x).flat.copy(), buffers=self.x.buffers)
            if number(mean, "full"):
                self.r = self.x.copy()


def _checked(delta: float) -> float:
    if not delta >= 0.0:
        raise ConfigError(f"dynamic_averaging: delta = {delta} must be at least 0")
    return delta
