"""A Trainer for quadratics, f(y) = 1/2 sum_d a_d (y_d - b_d)^2, where everything can be worked out."""

from __future__ import annotations

import numpy as np

from tierline.core.arrays import Params
from tierline.core.types import Array, Arrays
from tierline.learning.compute import Backprop, Drawn, Fitted, Gradient, Job, Match


class Quadratic:
    """`noise` times values that follow from the job's key is added to every gradient of a fit."""

    def __init__(
        self, a: Array, b: Array, *, num_samples: int = 1, steps_per_epoch: int = 2, noise: float = 0.0
    ) -> None:
        self.a, self.b = a.astype(np.float32), b.astype(np.float32)
        self.num_samples, self.steps_per_epoch, self.noise = num_samples, steps_per_epoch, noise
        self.fails_at: int | None = None
        self.num_calls = 0
        self.tape: dict[int, tuple[Params, Array]] = {}

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
        """Of a model cut in two: the device puts out r_d = sqrt(a_d) (y_d - b_d) for its d, and the root adds
        1/2 sum of their squares to its own part of f."""
        if "labels" in inputs:
            a, d = self.a[-at.flat.size :], at.flat - self.b[-at.flat.size :]
            self.tape[token] = Params(at.layout, a * d), inputs["inputs"]
            loss = 0.5 * (np.square(inputs["inputs"]).sum() + (a * d * d).sum())
            return {"logits": inputs["inputs"], "loss": np.asarray(loss, np.float32)}
        root_a = np.sqrt(self.a[: at.flat.size])
        self.tape[token] = Params(at.layout, root_a), inputs["inputs"]
        return {"features": (root_a * (at.flat - self.b[: at.flat.size]))[None]}

    def backward(self, token: int, gradients: Arrays) -> Backprop:
        values, inputs = self.tape.pop(token)
        if "loss" in gradients:
            return Backprop(values, {"inputs": inputs * gradients["loss"]})
        return Backprop(values * Params(values.layout, gradients["features"][0]), {})

    def draw(self, job: Job, step: int) -> Drawn:
        if step == 0:
            self._count()
        num_steps = job.num_steps or job.epochs * self.steps_per_epoch
        batch = {"inputs": np.zeros((1, 1), np.float32), "labels": np.zeros(1, np.int64)}
        return Drawn(batch, num_steps - 1 - step, self.num_samples)

    def _count(self) -> None:
        self.num_calls += 1
        if self.num_calls == self.fails_at:
            raise OSError("the disk is full")
