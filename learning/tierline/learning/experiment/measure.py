"""Measurements of a run over links, made from what its nodes report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tierline.core.arrays import Floats, Params
from tierline.core.types import NodeId
from tierline.learning.cast import SERVER
from tierline.learning.experiment.file import Measure
from tierline.learning.experiment.scene import Row, Scene
from tierline.learning.rule import NodeInfo


class Reports(Protocol):
    """What nodes have reported, in one place of possibly several."""

    def rounds(self) -> Mapping[NodeId, int]:
        """Turns whose reports are here, without a gap."""
        ...

    def reports(self, after: int) -> list[tuple[int, NodeId, int, Mapping[str, Any]]]:
        """Number above `after`, node, rounds, document: in the order in which they came."""
        ...

    def model(self, me: NodeId, round: int) -> Floats | None:
        """A node's flat model after so many rounds, where it was kept."""
        ...


@dataclass(frozen=True)
class Due:
    """All that the measurement of one round needs."""

    round: int
    models: Mapping[NodeId, Params]
    found: Mapping[str, float]


class Measuring:
    """Tells the rounds to measure one after the other, as soon as everything about them is reported."""

    def __init__(self, stage: Scene, measure: Measure, sources: Sequence[Reports]) -> None:
        self._stage, self._measure, self._sources = stage, measure, sources
        self._rounds = stage.setting.train.rounds
        self._counted = [SERVER] if stage.is_asynchronous else list(stage.rules)
        self._tally = _Tally(list(stage.rules), in_step=not stage.is_asynchronous)
        self._last = [0] * len(sources)
        self._next = 0
        start, first = stage.population.start, stage.workers[0]
        for me, rule in stage.rules.items():  # some begin with another model than the one they are given
            rule.start(start, NodeInfo(me, tuple(stage.rules), frozenset(), frozenset()))
        self._measured = [SERVER] if stage.has_server else []
        self._measured += stage.workers if stage.is_measured(first, measure.metrics) else ()

    @property
    def is_done(self) -> bool:
        """Nothing is left to be measured."""
        return self._next > self._rounds

    def next(self) -> Due | None:
        """The next round that is measured; None while reports are missing."""
        round, start = self._next, self._stage.population.start
        if self.is_done:
            return None
        if round == 0:
            models: dict[NodeId, Params] = {me: self._stage.rules[me].x for me in self._measured}
            found = dict(self._tally.counts)
        else:
            done: dict[NodeId, int] = {}
            for source in self._sources:
                done |= source.rounds()
            if any(done.get(me, 0) < round for me in self._counted):
                return None
            for place, source in enumerate(self._sources):
                reports = source.reports(self._last[place])
                self._tally.take(reports)
                self._last[place] = reports[-1][0] if reports else self._last[place]
            found, models = self._tally.up_to(round), {}
            for me in self._measured:
                flat = next(filter(lambda x: x is not None, (s.model(me, round) for s in self._sources)), None)
                if flat is not None:
                    models[me] = Params(start.layout, flat, buffers=start.buffers)
        self._next = min(round + self._measure.every, self._rounds) if round < self._rounds else self._rounds + 1
        return Due(round, models, found)

    def read(self, due: Due) -> list[Row]:
        """Measure; takes as long as the test samples need."""
        return self._stage.read(self._measure.metrics, due.round, due.models, due.found)


class _Tally:
    """What all turns so far came to: messages, bytes, and the training loss since the last look."""

    def __init__(self, nodes: Sequence[NodeId], *, in_step: bool) -> None:
        """`in_step`: turns above the round that is looked at wait for the next look."""
        self.counts: dict[str, float] = dict.fromkeys(("num_messages", "num_bytes", "num_late"), 0)
        self._order = {me: place for place, me in enumerate(nodes)}
        self._in_step = in_step
        self._waiting: list[tuple[int, int, Mapping[str, Any]]] = []

    def take(self, reports: Sequence[tuple[int, NodeId, int, Mapping[str, Any]]]) -> None:
        self._waiting += [(round, self._order[me], document) for _, me, round, document in reports]

    def up_to(self, round: int) -> dict[str, float]:
        """In the order of rounds and nodes, since sums of fractions depend on it."""
        self._waiting.sort(key=lambda item: item[:2])
        total = weight = 0.0
        later = []
        for item in self._waiting:
            if self._in_step and item[0] > round:
                later.append(item)
                continue
            for loss, num_samples in item[2]["losses"]:
                total += loss * num_samples
                weight += num_samples
            for key in self.counts:
                self.counts[key] += item[2].get(key, 0)
        self._waiting = later
        return self.counts | ({"train_loss": total / weight} if weight else {})
