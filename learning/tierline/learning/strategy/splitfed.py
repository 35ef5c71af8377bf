"""SplitFed: all devices train their part in parallel with the root, and the mean of their parts is the next one.

    version 1:  the root keeps a copy of its part for each worker; after the round it takes their mean too
    version 2:  one part of the root, which steps with each batch of each worker, in a new random order for every step
Means are weighted by the workers' samples.
Thapa et al., "SplitFed: When Federated Learning Meets Split Learning", AAAI 2022, Algorithms 1 and 2.
    values per round:  2 p q + 2 K |W_device|    (p samples in the job, q the width of the cut)
Deviations: means are sums in fixed point (2^-32), of 8 bytes a value on the way up. In version 2 the random order is
drawn for every step instead of once a round. The U shape (`labels = "device"`) is Vepakomma et al.'s, see `split`.
Status: checked (version 1 against `fedavg`, both against `split` with one worker; traffic by the formula).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from tierline.core.arrays import Params
from tierline.core.errors import ConfigError
from tierline.core.types import NodeId
from tierline.learning.descent import Descent
from tierline.learning.effects import Effects, collect, contribute, exchange, number, tell
from tierline.learning.fixed import contribution
from tierline.learning.rule import Turn
from tierline.learning.strategy._cut import CutHalf, root_batch
from tierline.learning.strategy._rounds import moved


class Server(CutHalf):
    """The root and the one who averages; `x` is the whole model."""

    kept = ("x",)

    def __init__(
        self,
        *,
        version: Literal[1, 2] = 1,
        cut: int = 1,
        labels: Literal["root", "device"] = "root",
        tail: int = 1,
        codec: str = "raw",
        micro_batches: int = 1,
        share: float = 1.0,
    ) -> None:
        if version not in (1, 2):
            raise ConfigError(f"splitfed: version = {version!r}; valid: 1, 2")
        super().__init__(cut=cut, labels=labels, tail=tail, codec=codec, micro_batches=micro_batches, share=share)
        self._version = version

    def turn(self, t: Turn) -> Effects[None]:
        workers = self._round.workers(t)
        device, root = self._cut.parts(self.x)
        yield from tell("part", workers, {"x": device.flat})
        begins = yield from exchange("begin", {}, workers)
        num_steps = {k: int(number(begins[k], "num_steps")) for k in workers}
        roots = {k: root.copy() if self._version == 1 else root for k in workers}
        common = Descent(t.job)
        descents = {k: Descent(t.job) if self._version == 1 else common for k in workers}
        for step in range(max(num_steps.values())):
            order = t.rng(f"order/{step}").permutation(len(workers))
            for k in (workers[i] for i in order if step < num_steps[workers[i]]):
                descents[k].step(roots[k].flat, (yield from root_batch(self._cut, t, k, roots[k], step)))
        if self._version == 1:
            root = _mean(roots, {k: number(begins[k], "num_samples") for k in workers})
        parts = yield from collect("parts", device, workers, [t.server])
        self.x = self._cut.joined(self.x, parts.mean, root)


class Worker(CutHalf):
    """A device with its samples; it remembers nothing."""

    def turn(self, t: Turn) -> Effects[None]:
        workers = self._round.workers(t)
        if t.me in workers:
            part, num_samples = yield from self._train(t)
            yield from contribute("parts", part, workers, [t.server], weight=num_samples)


def _mean(values: Mapping[NodeId, Params], weights: Mapping[NodeId, float]) -> Params:
    """Weighted mean in fixed point, so that it is the one that a sum of messages would be."""
    first, *others = [
        contribution(value, weight=weights[k], num_members=len(values), where=f"the root's part for {k}")
        for k, value in values.items()
    ]
    for part in others:
        first += part
    like = next(iter(values.values()))
    return moved(like, first.mean().astype(np.float32))
