"""Synchronous SGD: the server steps along the mean gradient of one batch per worker, compressed on the way if wished.

    x <- x - lr sum_k n_k C_k(g_k(x)) / sum_k n_k

Chen, Pan, Monga, Bengio, Jozefowicz, "Revisiting Distributed Synchronous SGD", arXiv 1604.00981, section 3, whose
backup workers are `quorum` below all. `compress` names a compressor of the room, with its `options`;
"error_feedback+topk" wraps one in the other, and the options are then the inner one's. Each tensor is compressed alone.
Deviations: the model travels down uncompressed. Without a compressor gradients are added in fixed point (2^-32), so
that nodes on the way may; with one, or with `max_samples`, each worker's message reaches the server, and one that is
no message of that compressor, is not finite or claims more samples is refused with a warning.
Sends the gradient or what the compressor makes of it. Workers remember what the compressor does.
Status: checked (equals gradient descent on the pooled samples; a compressor that keeps all changes nothing; converges
with error feedback where the bare compressor stalls).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tierline.core import catalog
from tierline.core.arrays import Params
from tierline.core.errors import BadFrame, ConfigError
from tierline.core.rng import Key
from tierline.core.types import NodeId
from tierline.learning.compressor import Compressor
from tierline.learning.effects import Effects, Message, gradient, hear, params, tell
from tierline.learning.half import Half
from tierline.learning.packing import packed, unpacked
from tierline.learning.rule import State, Turn
from tierline.learning.strategy._rounds import Round, WithinOption, moved
from tierline.learning.strategy._whole import MAX_MAGNITUDE, accepted, num_samples, too_few

_PREFIX = "g/"
"""Of a tensor's name in messages, so that none is taken for another field."""


class Server(Half):
    """Holds the model."""

    kept = ("x",)

    def __init__(
        self,
        *,
        compress: str | None = None,
        options: Mapping[str, object] | None = None,
        share: float = 1.0,
        quorum: int | None = None,
        within_s: WithinOption = None,
        max_samples: int | None = None,
    ) -> None:
        self._round = Round(share, quorum, within_s, max_samples)
        self._compressor = _made(compress, options)

    def turn(self, t: Turn) -> Effects[None]:
        if self._compressor is None:
            got = yield from self._round.gather(t, self.x, like=self.x.zeros_like())
            self.x = moved(self.x, self.x.flat - np.float32(t.lr) * got.mean.flat)
            return
        compressor, max_samples = self._compressor, self._round.max_samples

        def read(sender: NodeId, message: Message) -> tuple[Params, float]:
            return _expanded(compressor, t, sender, message, self.x), num_samples(message, max_samples)

        parts = accepted(t, (yield from self._round.hear_each(t, self.x)), read)
        if not parts:
            too_few(t, "sync_sgd", 0, 1)
            return
        num = sum(n for _, n in parts.values())
        total = np.zeros(self.x.flat.shape, np.float64)
        for g, n in parts.values():
            total += (n / num) * g.flat.astype(np.float64)
        self.x = moved(self.x, self.x.flat - t.lr * total)


class Worker(Half):
    """Computes one gradient a turn."""

    def __init__(
        self,
        *,
        compress: str | None = None,
        options: Mapping[str, object] | None = None,
        share: float = 1.0,
        max_samples: int | None = None,
    ) -> None:
        self._round = Round(share, max_samples=max_samples)
        self._compressor = _made(compress, options)

    def turn(self, t: Turn) -> Effects[None]:
        if t.me not in self._round.workers(t):
            return
        x = params((yield from hear("model", t.server)), "x", self.x)
        g = yield from gradient(x, t.batch)
        if self._compressor is None:
            yield from self._round.send(t, g.values, g.num_samples)
            return
        message: dict[str, np.ndarray | int | float] = {"n": g.num_samples}
        for name, view in g.values.items():
            message[_PREFIX + name] = packed(self._compressor.compress(_key(t, t.me, name), view))
        yield from tell("fitted", [t.server], message)

    def state(self) -> State:
        return {} if self._compressor is None else self._compressor.state()

    def load(self, state: State) -> None:
        if self._compressor is not None:
            self._compressor.load(state)


def _made(name: str | None, options: Mapping[str, object] | None) -> Compressor | None:
    """Raises ConfigError."""
    if name is None:
        if options:
            raise ConfigError("sync_sgd: options are those of a compressor; name one with compress")
        return None
    outer, plus, inner = name.partition("+")
    given: Mapping[str, object] = {"inner": inner, "options": options or {}} if plus else options or {}
    compressor: Compressor = catalog.make("compress", outer, **given)
    if compressor.promise.needs_side or compressor.promise.takes_factors_only:
        raise ConfigError(f"sync_sgd: compress = {name!r} needs more than a gradient; see docs/algorithms.md")
    return compressor


def _key(t: Turn, sender: NodeId, tensor: str) -> Key:
    return Key(t.run, t.round, sender, t.server, _PREFIX + tensor)


def _expanded(compressor: Compressor, t: Turn, sender: NodeId, message: Message, like: Params) -> Params:
    """Raises BadFrame, CodecError."""
    g = like.zeros_like()
    for name, view in g.items():
        arrived = unpacked(message.get(_PREFIX + name), view.shape)
        view[...] = compressor.expand(_key(t, sender, name), arrived)
    if not (np.abs(g.flat) <= MAX_MAGNITUDE).all():
        raise BadFrame("gradient: values that are not finite, or above 2^100")
    return g
