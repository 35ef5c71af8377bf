"""Sparse training with feedback: workers compute with the largest weights alone, and what they learn goes into all.

    x = m * w,   w <- w - lr u,   u = momentum u + g + weight_decay w,   g = sum_k n_k g_k(x) / sum_k n_k

m keeps the 1 - s_t largest |w| of all tensors with two axes or more, and everything else; it is chosen anew every
`every` rounds while s_t = sparsity (1 - (1 - t/until)^3) grows, and stays as it is from round `until` on. The gradient
at x moves pruned weights too, so that they may come back.
Lin, Stich, Barba, Dmitriev, Jaggi, "Dynamic Model Pruning with Feedback", ICLR 2020, Algorithm 1.
Deviations: in the paper one machine trains, here workers compute the gradient and the server holds w; momentum and
weight decay are those of the job.
Sends a bit per weight that may go and the weights that stayed; dense gradients come back. The server remembers w, u, m.
Status: partial (against its formula; on digits at 95 % above one-shot pruning while the learning rate decays, below it
with a steady one: docs/algorithms.md. The paper's CIFAR-10 numbers were not tried).
"""

from __future__ import annotations

import numpy as np

from tierline.core.arrays import Params
from tierline.core.errors import BadFrame, ConfigError
from tierline.learning.effects import Effects, Message, collect, contribute, gradient, hear, tell
from tierline.learning.half import Half
from tierline.learning.rule import NodeInfo, Turn
from tierline.learning.strategy._masks import from_bits, prunable, to_bits
from tierline.learning.strategy._rounds import Round, WithinOption, moved


class Server(Half):
    """`x` is the sparse model: what is measured and deployed."""

    kept = ("x", "dense", "velocity", "mask")

    def __init__(
        self,
        *,
        sparsity: float = 0.9,
        until: int = 1000,
        every: int = 16,
        share: float = 1.0,
        quorum: int | None = None,
        within_s: WithinOption = None,
    ) -> None:
        if not 0.0 <= sparsity < 1.0:
            raise ConfigError(f"pruning_feedback: sparsity = {sparsity} must be at least 0 and below 1")
        if until < 1 or every < 1:
            raise ConfigError(f"pruning_feedback: until = {until} and every = {every} must be at least 1")
        self._sparsity, self._until, self._every = sparsity, until, every
        self._round = Round(share, quorum, within_s)

    def start(self, x: Params, node: NodeInfo) -> None:
        super().start(x, node)
        self.dense, self.velocity = x.copy(), x.zeros_like()
        self.mask = moved(x, np.ones_like(x.flat))
        self._prunable = prunable(x)

    def turn(self, t: Turn) -> Effects[None]:
        if t.round <= self._until and (t.round % self._every == 0 or t.round == self._until):
            self._prune(t.round)
        workers, stays = self._round.workers(t), self.mask.flat != 0
        mask = to_bits(stays[self._prunable])
        yield from tell("model", workers, {"mask": mask, "values": self.x.flat[stays]})
        got = yield from collect(
            "gradient",
            self.x,
            workers,
            [t.server],
            quorum=self._round.quorum,
            within_s=self._round.deadline,
        )
        g = got.mean.flat + np.float32(t.job.weight_decay) * self.dense.flat
        self.velocity = moved(self.x, np.float32(t.job.momentum) * self.velocity.flat + g)
        self.dense = moved(self.x, self.dense.flat - np.float32(t.lr) * self.velocity.flat)
        self.x = moved(self.x, self.dense.flat * self.mask.flat)

    def _prune(self, round: int) -> None:
        sparsity = self._sparsity * (1 - (1 - round / self._until) ** 3)
        (places,) = np.nonzero(self._prunable)
        magnitude = np.abs(self.dense.flat[places])
        num_gone = int(sparsity * len(places))
        mask = np.ones_like(self.x.flat)
        mask[places[np.argsort(magnitude, kind="stable")[:num_gone]]] = 0  # of equals the first, alike everywhere
        self.mask = moved(self.x, mask)
        self.x = moved(self.x, self.dense.flat * mask)


class Worker(Half):
    """Computes one gradient a turn, with the sparse model; remembers nothing."""

    def __init__(self, *, share: float = 1.0) -> None:
        self._round = Round(share)

    def start(self, x: Params, node: NodeInfo) -> None:
        super().start(x, node)
        self._prunable = prunable(x)

    def turn(self, t: Turn) -> Effects[None]:
        if t.me not in self._round.workers(t):
            return
        x = self._read((yield from hear("model", t.server)))
        g = yield from gradient(x, t.batch)
        yield from contribute("gradient", g.values, self._round.workers(t), [t.server], weight=g.num_samples)

    def _read(self, message: Message) -> Params:
        """Raises BadFrame."""
        stays, values = np.ones(len(self._prunable), np.bool_), message.get("values")
        stays[self._prunable] = from_bits(message, int(self._prunable.sum()))
        if not isinstance(values, np.ndarray) or values.dtype != np.float32 or values.shape != (int(stays.sum()),):
            raise BadFrame(f"model: `values` must hold the {int(stays.sum())} weights that stay, as float32")
        flat = np.zeros(len(stays), np.float32)
        flat[stays] = values
        return moved(self.x, flat)
