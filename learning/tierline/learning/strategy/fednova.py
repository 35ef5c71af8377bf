"""Federated averaging of updates per effective step, so that who takes more steps does not pull the objective.

    d_k = (x - x_k) / a_k,    x <- x - (sum_k p_k a_k) sum_k p_k d_k,    p_k = n_k / sum_j n_j

a_k is the sum of the weights with which the local optimiser adds gradients up over its tau_k steps: tau_k for SGD,
(tau - r (1 - r^tau) / (1 - r)) / (1 - r) with momentum r, and a <- (1 - lr mu) a + 1 per step with a proximal term.
Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization", NeurIPS 2020,
section 4.
Deviations: no momentum at the server; the local optimiser starts fresh every round, as all of this project's do.
Status: checked (equals `fedavg` to rounding where all take equally many steps; a_k against an unrolled optimiser).
"""

from __future__ import annotations

from tierline.core.errors import ConfigError
from tierline.learning.compute import Job
from tierline.learning.effects import Effects
from tierline.learning.half import Half
from tierline.learning.rule import Turn
from tierline.learning.strategy._rounds import Round, WithinOption, joined, moved, part_of


class Server(Half):
    """Holds the model."""

    kept = ("x",)

    def __init__(self, *, share: float = 1.0, quorum: int | None = None, within_s: WithinOption = None) -> None:
        self._round = Round(share, quorum, within_s)

    def turn(self, t: Turn) -> Effects[None]:
        got = yield from self._round.gather(t, self.x, like=joined(d=self.x, a=0.0))
        d = part_of(got.mean, "d", self.x)
        self.x = moved(self.x, self.x.flat - got.mean["a"] * d.flat)


class Worker(Half):
    """Trains, and divides by its effective steps."""

    def __init__(self, *, share: float = 1.0) -> None:
        self._round = Round(share)

    def turn(self, t: Turn) -> Effects[None]:
        if t.me in self._round.workers(t):
            x, fitted = yield from self._round.train(t, self.x, t.job)
            a = _effective_steps(t.job, fitted.num_steps)
            yield from self._round.send(t, joined(d=(1.0 / a) * (x - fitted.values), a=a), fitted.num_samples)


def _effective_steps(job: Job, num_steps: int) -> float:
    """a_k. Raises ConfigError where it is not known."""
    if job.optimizer != "sgd" or (job.momentum and job.proximal):
        raise ConfigError("fednova: knows its weights for sgd, sgd with momentum, and sgd with a proximal term only")
    r = job.momentum
    if job.proximal:
        shrink = 1.0 - job.lr * job.proximal
        return sum(shrink**k for k in range(num_steps))
    return (num_steps - r * (1.0 - r**num_steps) / (1.0 - r)) / (1.0 - r)
