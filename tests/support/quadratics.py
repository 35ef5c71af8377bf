"""A Trainer for quadratics, f(y) = 1/2 sum_d a_d (y_d - b_d)^2, where everything can be worked out."""

from __future__ import annotations

import numpy as np

from tierline.core.arrays import Params
from tierline.core.types import Array, Arrays
from tierline.learning.compute import Backprop, Fitted, Gradient, Job, Match


class Quadratic:
    """`noise` times values that follow from the job's key is added to every gradient of a fit."""

    def __init__(
        self, a: Array, b: Array, *, num_samples: int = 1, steps_per_epoch: int = 2, noise: float = 0.0
    ) -> None:
        self.a, self.b = a.astype(np.float32), b.astype(np.float32)
        self.num_samples, self.steps_per_epoch, self.noise = num_samples, steps_per_epoch, noise
        self.fails_at: int | None = None
        self.num_calls = 0

    def gradient(self, at: Params, batch: Arrays, terms: tuple[Match, ...] = ()) -> Gradient:
        self._count()
        d = at.flat - self.b
        g, loss = self.a * d, float(0.5 * (self.a * d * d).sum())
        for term in terms:
            apart = at.flat - term.target[0]
            g = g + np.float32(2.0 * term.weight / apart.size) * apart
            loss += term.weight * float((apart * apart).mean())
        return Gradient(Params(at.layout, g), loss, self.num_samples)

    def fit(self, start: Params, job: Job) -> Fitted:
        self._count()
        y, m = start.copy(), start.zeros_like()
        num_steps = job.num_steps or job.epochs * self.steps_per_epoch
        for step in range(num_steps):
            g = self.a * (y.flat - self.b) + job.proximal * (y.flat - start.flat)
            if job.correction is not None:
                g = g + job.correction.flat
            if self.noise:
                g = g + self.noise * (job.key.child(str(step)).uniform(len(g)) - np.float32(0.5))
            m = job.momentum * m + Params(y.layout, g.astype(np.float32))
            y.axpy(-job.lr, m)
        return Fitted(y, 0.0, self.num_samples, num_steps)

    def outputs(self, at: Params, batch: Arrays, names: tuple[str, ...]) -> Arrays:
        """Every output is y itself, as that of one sample."""
        return {name: at.flat.copy()[None] for name in names}

    def forward(self, at: Params, token: int, inputs: Arrays) -> Arrays:
        raise NotImplementedError("a quadratic has no Sections")

    def backward(self, token: int, gradients: Arrays) -> Backprop:
        raise NotImplementedError("a quadratic has no Sections")

    def _count(self) -> None:
        self.num_calls += 1
        if self.num_calls == self.fails_at:
            raise OSError("the disk is full")
