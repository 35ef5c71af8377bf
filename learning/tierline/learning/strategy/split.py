"""Split learning: each device trains the first layers, the root the rest; the next device goes on from its weights.

In a round every worker in turn gets the device's part, trains it together with the root through the job's batches, and
hands it back. Labels go up with the activations, or stay on the device with the last layers (U-shaped).
Gupta and Raskar, "Distributed learning of deep neural network over multiple agents", JNCA 2018; Vepakomma et al.,
"Split learning for health: Distributed deep learning without sharing raw patient data", 2018, for the U shape.
    values per round:  2 p q + 2 K |W_device|    (p samples in the job, q the width of the cut, of both in the U shape)
Deviations: weights are handed on through the root, which keeps the whole model. Optimisers start fresh with each visit,
on both sides, so that a round is what a fit of the uncut network on each worker's samples in turn would be.
Status: checked (equal to the uncut network's fits; traffic by the formula; no labels in a message of the U shape).
"""

from __future__ import annotations

import numpy as np

from tierline.core.errors import BadFrame
from tierline.learning.descent import Descent
from tierline.learning.effects import Effects, hear, number, params, tell
from tierline.learning.rule import Turn
from tierline.learning.strategy._cut import CutHalf, root_batch


class Server(CutHalf):
    """The root; `x` is the whole model."""

    kept = ("x",)

    def turn(self, t: Turn) -> Effects[None]:
        device, root = self._cut.parts(self.x)
        for k in self._round.workers(t):
            yield from tell("part", [k], {"x": device.flat})
            begin = yield from hear("begin", k)
            descent = Descent(t.job)
            for step in range(int(number(begin, "num_steps"))):
                descent.step(root.flat, (yield from root_batch(self._cut, t, k, root, step)))
            device = params((yield from hear("part", k)), "x", device)
            if not np.isfinite(device.flat).all():
                raise BadFrame(f"split: {k} hands on weights that are not finite; a smaller lr may help")
        self.x = self._cut.joined(self.x, device, root)


class Worker(CutHalf):
    """A device with its samples; it remembers nothing."""

    def turn(self, t: Turn) -> Effects[None]:
        if t.me in self._round.workers(t):
            part, _ = yield from self._train(t)
            yield from tell("part", [t.server], {"x": part.flat})
