"""Any strategy, with liars among its workers: the last few answer not what they learned, but `factor` times it.

A strategy of one's own around another: `rule` names that one and `options` are its own. Both halves only pass on what
the other does; what liars change is the answer of their Trainer, so that this works with every strategy that trains.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tierline.core import catalog
from tierline.core.arrays import Params
from tierline.learning.compute import Fit
from tierline.learning.effects import Effects
from tierline.learning.rule import Rule, Turn


class _Around:
    def __init__(self, part: str, rule: str, options: Mapping[str, object] | None) -> None:
        self._inner: Rule = catalog.maker("strategy", rule, options or {})(part)
        inner = self._inner
        self.traits, self.start, self.resync = inner.traits, inner.start, inner.resync
        self.state, self.load = inner.state, inner.load

    @property
    def x(self) -> Params:
        return self._inner.x

    def turn(self, t: Turn) -> Effects[None]:
        return self._inner.turn(t)


class Server(_Around):
    """The server of `rule`, as it is."""

    def __init__(self, *, rule: str = "fedavg", options: Mapping[str, object] | None = None) -> None:
        super().__init__("Server", rule, options)


class Worker(_Around):
    """The worker of `rule`; the last `num_liars` move `factor` times as far as they learned, and say that they hold
    `claims` samples where that is given."""

    def __init__(
        self,
        *,
        rule: str = "fedavg",
        options: Mapping[str, object] | None = None,
        num_liars: int = 0,
        factor: float = -1.0,
        claims: int | None = None,
    ) -> None:
        super().__init__("Worker", rule, options)
        self._num, self._factor, self._claims = num_liars, factor, claims

    def turn(self, t: Turn) -> Effects[None]:
        if t.me not in t.workers[len(t.workers) - self._num :]:
            yield from self._inner.turn(t)
            return
        running, answer = self._inner.turn(t), None
        while True:
            try:
                effect = running.send(answer)
            except StopIteration:
                return
            answer = yield effect
            if isinstance(effect, Fit):
                start = effect.start
                lie = start + self._factor * (answer.values - start)
                answer = dataclasses.replace(answer, values=lie, num_samples=self._claims or answer.num_samples)
