"""Fine-tuning by masks: the weights of a trained model stay as they are, and each task learns which of them to keep.

    x = w * 1[s >= tau],   s <- s - lr g(x) * w   (straight through the threshold)

One score per weight of all tensors with two axes or more; scores begin uniform in [0, spread), and tau =
sparsity * spread, so that at first the share `sparsity` is masked.
Zhao, Lin, Mi, Jaggi, Schuetze, "Masking as an Efficient Alternative to Finetuning for Pretrained Language Models",
EMNLP 2020, section 3.
Deviations: the paper has one learner. Here workers take the job's steps on their own scores and send masks; the server
keeps a weight where workers with at least half of the samples do. A worker whose score disagrees with what the server
kept moves it to the threshold's other side, no further. With one worker it is the paper's rule, with SGD.
Sends one bit per weight, both ways. Workers remember their scores.
Status: reconstructed (from the abstract and a review; checked against its formula, 1/32 of the bytes of the weights).
"""

from __future__ import annotations

import numpy as np

from tierline.core.arrays import Params
from tierline.core.errors import ConfigError
from tierline.core.rng import Key
from tierline.core.types import NodeId
from tierline.learning.effects import Effects, Message, draw, gradient, hear, tell
from tierline.learning.half import Half
from tierline.learning.rule import NodeInfo, Turn
from tierline.learning.strategy._masks import Bools, from_bits, prunable, to_bits
from tierline.learning.strategy._rounds import Round, WithinOption, moved
from tierline.learning.strategy._whole import accepted, num_samples, too_few


class _Masked(Half):
    """The weights of the start, and scores for those that may go; `x` is what is left of the weights."""

    kept = ("x", "scores")

    def __init__(
        self,
        *,
        sparsity: float = 0.05,
        spread: float = 0.02,
        share: float = 1.0,
        quorum: int | None = None,
        within_s: WithinOption = None,
        max_samples: int | None = None,
    ) -> None:
        if not 0.0 < sparsity < 1.0:
            raise ConfigError(f"mask_tuning: sparsity = {sparsity} must be above 0 and below 1")
        if not spread > 0.0:
            raise ConfigError(f"mask_tuning: spread = {spread} must be above 0")
        self._tau, self._spread = np.float32(sparsity * spread), spread
        self._round = Round(share, quorum, within_s, max_samples)

    def start(self, x: Params, node: NodeInfo) -> None:
        super().start(x, node)
        self._weights, self._prunable = x, prunable(x)
        drawn = Key("mask_tuning", 0, "", "", "scores").uniform(len(x.flat))  # alike everywhere, so never sent
        self.scores = moved(x, np.float32(self._spread) * drawn)
        self._cut()

    @property
    def _stays(self) -> Bools:
        stays: Bools = self.scores.flat[self._prunable] >= self._tau
        return stays

    def _cut(self) -> None:
        keep = (self.scores.flat >= self._tau) | ~self._prunable
        self.x = moved(self.x, np.where(keep, self._weights.flat, np.float32(0)))

    def _agree(self, stays: Bools) -> None:
        """Scores move no further than they must."""
        flat = self.scores.flat.copy()
        scores = flat[self._prunable]
        below = np.nextafter(self._tau, np.float32(0), dtype=np.float32)
        scores = np.where(stays, np.maximum(scores, self._tau), np.minimum(scores, below))
        flat[self._prunable] = scores
        self.scores = moved(self.scores, flat)
        self._cut()


class Server(_Masked):
    """Holds the mask that most agree on."""

    def turn(self, t: Turn) -> Effects[None]:
        workers, num = self._round.workers(t), int(self._prunable.sum())
        yield from tell("model", workers, {"mask": to_bits(self._stays)})

        def read(_: NodeId, message: Message) -> tuple[Bools, float]:
            return from_bits(message, num), num_samples(message, self._round.max_samples)

        parts = accepted(t, (yield from self._round.replies(t)), read)
        if not parts:
            too_few(t, "mask_tuning", 0, 1)
            return
        votes = np.sum([n * np.where(mask, 1.0, -1.0) for mask, n in parts.values()], axis=0)
        self._agree(np.greater_equal(votes, 0.0))


class Worker(_Masked):
    """Takes the job's steps on its scores."""

    def turn(self, t: Turn) -> Effects[None]:
        if t.me not in self._round.workers(t):
            return
        message = yield from hear("model", t.server)
        self._agree(from_bits(message, int(self._prunable.sum())))
        step, num_left, num = 0, 1, 0
        while num_left:
            drawn = yield from draw(t.job, step)
            g = yield from gradient(self.x, drawn.batch)
            self.scores = moved(self.scores, self.scores.flat - np.float32(t.lr) * g.values.flat * self._weights.flat)
            self._cut()
            step, num_left, num = step + 1, drawn.num_left, drawn.num_samples
        yield from tell("fitted", [t.server], {"mask": to_bits(self._stays), "n": num})
