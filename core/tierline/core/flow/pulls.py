"""Features that did not come with the outputs: asked of the children, awaited, handed on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from tierline.core.errors import PlanError, TierlineError
from tierline.core.flow import journey as j
from tierline.core.flow.climb import Climb
from tierline.core.flow.coding import decode_rows
from tierline.core.flow.gate import Gate
from tierline.core.flow.journey import Journey, State
from tierline.core.flow.port import Site
from tierline.core.link import messages as m
from tierline.core.types import Array, SampleId


class Pulls:
    """Samples of `open_` that the first exit was not sure of, until their features are here."""

    def __init__(
        self,
        site: Site,
        open_: dict[SampleId, Journey],
        gate: Gate,
        climb: Climb,
        *,
        answer: Callable[[Journey, str], None],
    ) -> None:
        self._levels, self._port, self._clock, self._counts = site.levels, site.port, site.clock, site.memory.counts
        self._open, self._gate, self._climb, self._answer = open_, gate, climb, answer

    def need(self, batch: list[Journey]) -> None:
        """Ask the children for what did not come with the outputs; what is whole climbs."""
        if self._levels[0].feature_spec is None:
            for journey in batch:
                self._answer(journey, "")
            return
        asked: dict[tuple[str, str], list[SampleId]] = defaultdict(list)
        for journey in batch:
            if not self._climb.can(journey, 1):
                continue
            journey.state = State.PULL
            for name, part in journey.parts.items():
                if part.feature is None:
                    journey.awaited.add(name)
                    asked[part.owner, part.name].append(journey.id)
        for (child, name), ids in asked.items():
            if not self._port.to_child(child, m.Pull(0, name, ids)):
                for sample in ids:
                    self._settled(self._open[sample], {self._gate.roles[name]})
        for journey in batch:
            if journey.state is State.PULL and not journey.awaited:
                self._climb.enqueue(journey)

    def came(self, child: str, features: m.Features) -> None:
        """A child's answer."""
        started_ns = self._clock.now_ns()
        role = self._gate.roles.get(features.name, features.name)
        rows: Sequence[Array | None] = [None] * len(features.gone)
        if features.feature is not None:
            spec = self._levels[0].feature_spec
            try:
                if spec is None:
                    raise PlanError("features came for a level that has none")
                rows = [*decode_rows(features.feature, spec), *rows]
            except TierlineError as error:
                self._counts["refused"] += 1
                self._port.to_child(child, m.Refused(0, features.name, (), error.code, str(error)))
                rows = [None] * (len(features.ids) + len(features.gone))
        decode_ns = self._clock.now_ns() - started_ns
        for sample, feature in zip((*features.ids, *features.gone), rows, strict=True):
            journey = self._open.get(sample)
            if journey is None or role not in journey.awaited or journey.parts[role].owner != child:
                continue
            journey.parts[role].feature = feature
            journey.spend(j.DECODE, decode_ns)
            journey.spend(j.PULL, -decode_ns)
            self._settled(journey, {role})

    def lost(self, journey: Journey, child: str) -> None:
        """What this child was asked for will not come."""
        self._settled(journey, {name for name in journey.awaited if journey.parts[name].owner == child})

    def _settled(self, journey: Journey, names: Iterable[str]) -> None:
        journey.awaited.difference_update(names)
        if journey.state is State.PULL and not journey.awaited:
            journey.waited(j.PULL, self._clock.now_ns())
            self._climb.enqueue(journey)
