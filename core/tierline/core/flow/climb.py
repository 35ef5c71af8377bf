"""From a level's fused features to the next level: through the Section that runs here, or up to the parent.

One batch per level runs at a time; what comes meanwhile makes the next batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np

from tierline.core.flow import journey as j
from tierline.core.flow.journey import Journey, State
from tierline.core.flow.levels import FEATURE, LOGITS, stack
from tierline.core.flow.port import Site
from tierline.core.flow.upward import Upward
from tierline.core.plan import Plan
from tierline.core.types import Array, Arrays

Settle = Callable[[list[Journey], int, Arrays, int, Callable[[list[Journey]], None]], None]
"""`settle(batch, level, outputs, started_ns, unsure)` decides an exit; `unsure` takes those that do not leave."""


class Climb:
    """Samples that no exit so far was sure of."""

    plan: Plan

    def __init__(
        self,
        site: Site,
        upward: Upward,
        *,
        settle: Settle,
        answer: Callable[[Journey, str], None],
    ) -> None:
        """`answer(journey, reason)` ends a sample with its best exit so far, degraded unless the reason is empty."""
        self._runs, self._levels, self._port, self._clock = site.placement.runs, site.levels, site.port, site.clock
        self._counts, self._upward, self._settle, self._answer = site.memory.counts, upward, settle, answer
        self._waiting: dict[int, list[Journey]] = defaultdict(list)
        """By the level whose features they hold."""
        self._busy: set[int] = set()

    def can(self, journey: Journey, level: int) -> bool:
        """Whether level's Section can still answer; if not, the best exit so far does, marked degraded."""
        reason = "" if level in self._runs else self._upward.why_not(journey)
        if reason:
            self._answer(journey, reason)
        return not reason

    def enqueue(self, journey: Journey) -> None:
        """All features of `journey.level` that will come are here."""
        journey.state = State.RUN
        self._waiting[journey.level].append(journey)

    def is_free(self, level: int) -> bool:
        """Whether features of this level would run at once: none wait, none run."""
        return level not in self._waiting and level not in self._busy

    def has_work(self) -> bool:
        return bool(self._waiting) and not self._waiting.keys() <= self._busy

    def work(self) -> None:
        """Start one batch of every level that is free."""
        for level in list(self._waiting):
            if level in self._busy:
                continue
            batch, max_batch = self._waiting.pop(level), self.plan.max_batch
            if len(batch) > max_batch:
                self._waiting[level] = batch[max_batch:]
                del batch[max_batch:]
            self._start(level, [x for x in batch if x.state is State.RUN])

    def _start(self, level: int, batch: list[Journey]) -> None:
        if not batch:
            return
        started_ns = self._clock.now_ns()
        for journey in batch:
            journey.waited(j.QUEUE, started_ns)
        feature_B = self._fuse(level, batch)
        now_ns = self._clock.now_ns()
        for journey in batch:
            journey.spans_ns[j.AGGREGATE] += now_ns - started_ns
            journey.mark_ns = now_ns
        if level + 1 not in self._runs:
            self._upward.escalate(batch, level, feature_B)
            return
        self._busy.add(level)
        self._counts["batches"] += 1
        self._counts["batched"] += len(batch)
        self._port.run(level + 1, "*", feature_B, lambda outputs, ns: self._ran(level, batch, outputs, ns))

    def _fuse(self, level: int, batch: list[Journey]) -> Array:
        """A batch holds either parts of views, or features that were fused below: never both."""
        first = batch[0].feature
        if first is not None:
            return first[np.newaxis] if len(batch) == 1 else np.stack([x.feature for x in batch])  # type: ignore[misc]
        runner = self._levels[level]
        assert runner.feature_spec is not None
        rows = [[x.parts[n].feature if n in x.parts else None for x in batch] for n in runner.parts]
        return runner.fuse_features(*stack(rows, runner.feature_spec))

    def _ran(self, below: int, batch: list[Journey], outputs: Arrays, engine_ns: int) -> None:
        """A Section's outputs are here."""
        self._busy.discard(below)
        now_ns = self._clock.now_ns()
        for journey in batch:
            journey.waited(j.QUEUE, now_ns - engine_ns)
            journey.spans_ns[j.SECTION] += engine_ns
            journey.mark_ns = now_ns
        alive = [row for row, x in enumerate(batch) if x.state is State.RUN]
        if not outputs:
            for row in alive:
                self._answer(batch[row], "engine")
            return
        level = below + 1
        feature_B = outputs.get(FEATURE)
        for row in alive:
            batch[row].feature = None if feature_B is None else feature_B[row]
        runner, logits_BK = self._levels[level], outputs.get(LOGITS)
        if len(alive) < len(batch):
            batch = [batch[row] for row in alive]
            logits_BK = None if logits_BK is None else logits_BK[alive]
        if batch:
            decided = {} if logits_BK is None or not runner.has_exit else runner.own_outputs(logits_BK)
            self._settle(batch, level, decided, now_ns, self._onwards)

    def _onwards(self, batch: list[Journey]) -> None:
        for journey in batch:
            if self.can(journey, journey.level + 1):
                self.enqueue(journey)
