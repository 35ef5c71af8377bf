"""What strategies share: who takes part in a round, and the way there and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from tierline.core.arrays import Params
from tierline.core.catalog import nearest
from tierline.core.errors import ConfigError, ShapeMismatch
from tierline.core.types import Array, NodeId
from tierline.learning.compute import Fitted, Job
from tierline.learning.effects import (
    Effects,
    Inbox,
    Message,
    Reduced,
    collect,
    contribute,
    exchange,
    fit,
    hear,
    params,
    tell,
)
from tierline.learning.fixed import WeightedSum, contribution
from tierline.learning.half import Half
from tierline.learning.patience import Adaptive, Within
from tierline.learning.rule import Turn
from tierline.learning.strategy._whole import accepted, finite, num_samples

WithinOption = float | str | Mapping[str, float] | None
"""How long a round waits, as experiment files say it."""


@dataclass(frozen=True)
class Round:
    """How the rounds of a strategy run: `share` of the workers take part, drawn alike by the server and every worker,
    so that nobody needs to be told; the server goes on with `quorum` of them, or `within_s` after the first. That may
    be "adaptive", or a table of what `Adaptive` takes: it then follows from when updates came in earlier rounds.

    With `max_samples` every worker's message reaches the server whole, without pre-adding on the way, and one that
    claims more samples, is not finite or of another size is refused with a warning. Raises ConfigError.
    """

    share: float = 1.0
    quorum: int | None = None
    within_s: WithinOption = None
    max_samples: int | None = None

    def __post_init__(self) -> None:
        if self.max_samples is not None and self.max_samples < 1:
            raise ConfigError(f"max_samples = {self.max_samples} must be at least 1")
        _ = self.deadline
        if not 0.0 < self.share <= 1.0:
            raise ConfigError(f"share = {self.share} must be above 0 and at most 1")

    @property
    def deadline(self) -> Within:
        """As effects take it."""
        within = self.within_s
        if isinstance(within, Mapping):
            valid = [field.name for field in fields(Adaptive)]
            for key in within:
                if key not in valid:
                    raise ConfigError(f"within_s: no option {key!r}{nearest(key, valid)}")
            return Adaptive(**within)
        if within == "adaptive":
            return Adaptive()
        if isinstance(within, str) or (within is not None and not within >= 0.0):
            raise ConfigError(f'within_s = {within!r}: give seconds, "adaptive", or a table of its options')
        return within

    def workers(self, t: Turn) -> tuple[NodeId, ...]:
        """max(1, round(share K)) of the K workers, at random for this round, in their own order."""
        if not t.workers:
            raise ConfigError("a strategy needs at least one worker beside its server")
        num = max(1, math.floor(self.share * len(t.workers) + 0.5))
        if num == len(t.workers):
            return t.workers
        rows = t.shared_rng("participants").permutation(len(t.workers))[:num]
        return tuple(t.workers[row] for row in sorted(rows.tolist()))

    def gather(self, t: Turn, x: Params, *extra: Params, like: Params | None = None) -> Effects[Reduced]:
        """The server's half: send `x` and whatever is sent with it, wait for the sum of what `train` and `send` make.
        `like` is the layout of that sum where it is not the model's; where all were refused, the mean is `like`."""
        if self.max_samples is not None:
            return self._added(t, like or x, (yield from self.hear_each(t, x, *extra)))
        yield from self._tell(t, x, *extra)
        return (
            yield from collect(
                "fitted", like or x, self.workers(t), [t.server], quorum=self.quorum, within_s=self.deadline
            )
        )

    def hear_each(self, t: Turn, x: Params, *extra: Params) -> Effects[Inbox]:
        """The server's half where messages come whole: send `x`, wait for what each worker tells as "fitted"."""
        yield from self._tell(t, x, *extra)
        return (yield from self.replies(t))

    def replies(self, t: Turn) -> Effects[Inbox]:
        """What each worker tells as "fitted"."""
        workers = self.workers(t)
        got = dict((yield from exchange("fitted", {}, workers, quorum=1)))
        num_more = (len(workers) if self.quorum is None else self.quorum) - 1
        if num_more:
            rest = set(workers) - got.keys()
            got |= yield from exchange("fitted", {}, rest, quorum=num_more, within_s=self.deadline)
        return got

    def train(self, t: Turn, like: Params, job: Job) -> Effects[tuple[Params, Fitted]]:
        """A worker's half: hear the model, train from it; returns the model heard and what came of it."""
        message = yield from hear("model", t.server)
        x = params(message, "x", like)
        return x, (yield from fit(x, job))

    def send(self, t: Turn, value: Params, weight: float) -> Effects[None]:
        """A worker's part of the sum."""
        if self.max_samples is not None:
            yield from tell("fitted", [t.server], {"x": value.flat, "n": weight})
        else:
            yield from contribute("fitted", value, self.workers(t), [t.server], weight=weight)

    def _tell(self, t: Turn, x: Params, *extra: Params) -> Effects[None]:
        message = {"x": x.flat} | {f"x{i}": more.flat for i, more in enumerate(extra)}
        yield from tell("model", self.workers(t), message)

    def _added(self, t: Turn, like: Params, got: Inbox) -> Reduced:
        """The bits that a Reduce of the same workers makes."""

        def read(_: NodeId, message: Message) -> WeightedSum:
            value, num = finite(message, "x", like), num_samples(message, self.max_samples)
            return contribution(value, weight=num, num_members=len(self.workers(t)), where="update")

        parts = accepted(t, got, read)
        total = None
        for part in parts.values():
            total = part if total is None else total + part
        return Reduced(like.layout, total or contribution(like, weight=1.0, num_members=1), tuple(parts))


class MeanServer(Half):
    """Holds the model, and takes the weighted mean of what workers send as the next one."""

    kept = ("x",)

    def __init__(
        self,
        *,
        share: float = 1.0,
        quorum: int | None = None,
        within_s: WithinOption = None,
        max_samples: int | None = None,
    ) -> None:
        self._round = Round(share, quorum, within_s, max_samples)

    def turn(self, t: Turn) -> Effects[None]:
        got = yield from self._round.gather(t, self.x)
        self.x = moved(self.x, got.mean.flat)


class PlainWorker(Half):
    """Trains as the experiment says and sends its model; remembers nothing."""

    def __init__(self, *, share: float = 1.0, max_samples: int | None = None) -> None:
        self._round = Round(share, max_samples=max_samples)

    def turn(self, t: Turn) -> Effects[None]:
        if t.me in self._round.workers(t):
            _, fitted = yield from self._round.train(t, self.x, self._job(t))
            yield from self._round.send(t, fitted.values, fitted.num_samples)

    def _job(self, t: Turn) -> Job:
        return t.job


def moved(x: Params, flat: npt.NDArray[Any]) -> Params:
    """`flat` as the model, with what is not trained as it was in `x`."""
    return Params(x.layout, flat.astype(np.float32, copy=False), buffers=x.buffers)


def joined(**parts: Params | float) -> Params:
    """Several values to sum up as one; tensors are named `part` or `part/tensor`."""
    arrays: dict[str, Array] = {}
    for name, part in parts.items():
        if isinstance(part, Params):
            arrays |= {f"{name}/{key}": view for key, view in part.items()}
        else:
            arrays[name] = np.asarray(part, np.float32)
    return Params.from_arrays(arrays)


def part_of(whole: Params, name: str, like: Params) -> Params:
    """One value of a `joined` one. Raises ShapeMismatch."""
    try:
        flat = np.concatenate([whole[f"{name}/{key}"].ravel() for key in like])
    except KeyError as error:
        raise ShapeMismatch(f"sum: no {error.args[0]!r} in it") from None
    return Params(like.layout, flat, buffers=like.buffers)
