"""Decides exits: who leaves with an answer, and who is handed on."""

from __future__ import annotations

from collections.abc import Callable

from tierline.core.decide import leaves
from tierline.core.flow import journey as j
from tierline.core.flow.journey import Journey
from tierline.core.flow.levels import stack
from tierline.core.flow.port import Site
from tierline.core.plan import Plan
from tierline.core.types import Arrays


class Exits:
    """Scores the exits of all levels under the Plan's thresholds."""

    plan: Plan

    def __init__(self, site: Site, *, answer: Callable[[Journey, str], None]) -> None:
        self._levels, self._clock, self._answer = site.levels, site.clock, answer

    def first(self, batch: list[Journey], unsure: Callable[[list[Journey]], None]) -> None:
        """Level 0's exit, if it has one, for samples that will get no more views."""
        started_ns = self._clock.now_ns()
        for journey in batch:
            journey.waited(j.QUEUE, started_ns)
        runner = self._levels[0]
        if not runner.has_exit:
            unsure(batch)
            return
        rows = [[x.parts[name].logits_K if name in x.parts else None for x in batch] for name in runner.parts]
        outputs = runner.fuse_outputs(*stack(rows, runner.logits_spec))
        fused_ns = self._clock.now_ns()
        for journey in batch:
            journey.spend(j.AGGREGATE, fused_ns - started_ns)
        self.settle(batch, 0, outputs, fused_ns, unsure)

    def settle(
        self,
        batch: list[Journey],
        level: int,
        outputs: Arrays,
        started_ns: int,
        unsure: Callable[[list[Journey]], None],
    ) -> None:
        """Score one exit, answer the confident, hand on the rest; all where the level has no exit."""
        runner = self._levels[level]
        if not runner.has_exit:
            for journey in batch:
                journey.level = level
            unsure(batch)
            return
        leave_B: list[bool] | None = None  # the root answers all
        if level < self._levels.root_level:
            leave_B = leaves(runner.rule.score(outputs), self.plan.thresholds[runner.exit_name]).tolist()
        now_ns = self._clock.now_ns()
        hard = []
        for row, journey in enumerate(batch):
            journey.level, journey.exit = level, runner.exit_name
            journey.outputs = {name: values[row] for name, values in outputs.items()}
            journey.spans_ns[j.EXIT] += now_ns - started_ns
            journey.mark_ns = now_ns
            if leave_B is None or leave_B[row]:
                self._answer(journey, "")
            else:
                hard.append(journey)
        if hard:
            unsure(hard)
