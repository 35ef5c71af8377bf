"""The optimiser of a job for rules that take the steps themselves, in place on one flat array.

SGD:   m <- momentum m + g;  x <- x - lr m
Adam:  Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, Algorithm 1.
with g = gradient + weight_decay x.
Status: checked (split training against the uncut network's fit, with both optimisers).
"""

from __future__ import annotations

import math

import numpy as np

from tierline.core.arrays import Floats
from tierline.core.errors import ConfigError
from tierline.learning.compute import Job

_ADAM_1, _ADAM_2, _ADAM_EPS = 0.9, 0.999, 1e-8


class Descent:
    """Starts fresh, as every fit does. Raises ConfigError for `clip_norm`, which needs the whole model's gradient."""

    def __init__(self, job: Job) -> None:
        if job.clip_norm is not None:
            raise ConfigError("clip_norm needs the gradient of the whole model, which no node of a cut model has")
        self._job, self._num_steps = job, 0
        self._m = self._v = np.empty(0, np.float32)

    def step(self, x: Floats, gradient: Floats) -> None:
        """Move `x` along `gradient`."""
        job = self._job
        if self._num_steps == 0:
            self._m, self._v = np.zeros_like(x), np.zeros_like(x)
        self._num_steps += 1
        g = gradient + np.float32(job.weight_decay) * x
        if job.optimizer == "adam":
            self._m = np.float32(_ADAM_1) * self._m + np.float32(1 - _ADAM_1) * g
            self._v = np.float32(_ADAM_2) * self._v + np.float32(1 - _ADAM_2) * g * g
            scale = np.float32(math.sqrt(1 - _ADAM_2**self._num_steps))
            root = np.sqrt(self._v) / scale + np.float32(_ADAM_EPS)
            x -= np.float32(job.lr / (1 - _ADAM_1**self._num_steps)) * self._m / root
        else:
            self._m = np.float32(job.momentum) * self._m + g
            x -= np.float32(job.lr) * self._m
