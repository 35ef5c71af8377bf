"""Asynchronous federated averaging: workers never wait for one another, and the server steps with every K updates.

    worker:  (x_v, v) -> send  d = fit(x_v) - x_v  and v
    server:  x <- x + server_lr / K sum_{i = 1..K} s(version - v_i) d_i,    s(tau) = (1 + tau)^-a

Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022, Algorithm 1; a = 1/2 is what
its experiments use, as far as we recall.
Deviations: whoever has delivered gets the next job himself, instead of a worker drawn anew; with `wait = true` he gets
it only after the server's next step, so that nobody trains twice on one version. Updates count equally; one that is
not finite, of another size, or of a version that was not given out is refused with a warning, and does not count.
Status: checked (K = all, equal speeds and `wait` equal `fedavg` on equal shares of samples; staleness by hand).
"""

from __future__ import annotations

import numpy as np

from tierline.core.arrays import Params
from tierline.core.errors import BadFrame, ConfigError
from tierline.core.types import NodeId
from tierline.learning.effects import Effects, Message, exchange, fit, hear, number, params, tell
from tierline.learning.half import Half
from tierline.learning.rule import Traits, Turn
from tierline.learning.strategy._rounds import moved
from tierline.learning.strategy._whole import accepted, finite

_TRAITS = Traits(tolerates_loss=False, per_edge_state=False, conserves=None, directed=False, asynchronous=True)


class Server(Half):
    """One turn is one step: K updates, whoever they come from."""

    traits = _TRAITS
    kept = ("x",)

    def __init__(self, *, buffer: int = 10, server_lr: float = 1.0, staleness: float = 0.5, wait: bool = False) -> None:
        if buffer < 1 or not server_lr > 0.0 or not staleness >= 0.0:
            raise ConfigError("fedbuff: buffer must be at least 1, server_lr above 0, staleness at least 0")
        self._size, self._lr, self._a, self._wait = buffer, server_lr, staleness, wait

    def turn(self, t: Turn) -> Effects[None]:
        if t.round == 0:
            yield from self._give_out(t.workers, 0)
        total = np.zeros(self.x.flat.shape, np.float64)
        waiting: list[NodeId] = []
        num_here, refused = 0, set[NodeId]()
        while num_here < self._size:
            got = yield from exchange("update", {}, t.workers, quorum=1, stream=True)
            usable = accepted(t, got, lambda _, message: self._read(t, message))
            refused = set() if usable else refused | got.keys()
            if len(refused) == len(t.workers):
                raise BadFrame("fedbuff: every worker's update was refused; a smaller lr may help")
            for late, d in usable.values():
                total += (1.0 + late) ** -self._a * d.flat.astype(np.float64)
                num_here += 1
            waiting += got
            if num_here < self._size and (not self._wait or len(waiting) == len(t.workers)):
                yield from self._give_out(waiting, t.round)
                waiting.clear()
        self.x = moved(self.x, self.x.flat + self._lr / self._size * total)
        yield from self._give_out(waiting, t.round + 1)

    def _read(self, t: Turn, message: Message) -> tuple[int, Params]:
        """How stale an update is, and what it says. Raises BadFrame, ShapeMismatch."""
        version = number(message, "version")
        if version not in range(t.round + 1):
            raise BadFrame(f"version = {version:g} is none that was given out")
        return t.round - int(version), finite(message, "d", self.x)

    def _give_out(self, workers: list[NodeId] | tuple[NodeId, ...], version: int) -> Effects[None]:
        message: Message = {"x": self.x.flat, "version": version}
        yield from tell("job", workers, message, stream=True)


class Worker(Half):
    """One turn is one job."""

    traits = _TRAITS

    def turn(self, t: Turn) -> Effects[None]:
        job = yield from hear("job", t.server, stream=True)
        x = params(job, "x", self.x)
        fitted = yield from fit(x, t.job)
        update: Message = {"d": fitted.values.flat - x.flat, "version": number(job, "version")}
        yield from tell("update", [t.server], update, stream=True)
