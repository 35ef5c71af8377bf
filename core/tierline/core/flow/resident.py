"""One structure of a Plan as a node holds it ready: Sections loaded, and the flow of its samples around them.

Two are resident while a hierarchy goes from one Plan to the next: samples end where they began.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Protocol

import numpy as np

from tierline.core.errors import TierlineError
from tierline.core.flow.forward import Forwarder
from tierline.core.flow.journey import NUM_SPANS, PREPROCESS, SECTION, Memory
from tierline.core.flow.junction import Junction
from tierline.core.flow.loaded import Loaded
from tierline.core.flow.port import Done, Site
from tierline.core.flow.speed import SectionTimes
from tierline.core.flow.views import ViewBatches
from tierline.core.flow.worker import Worker
from tierline.core.link import messages as m
from tierline.core.plan import Placement, Plan
from tierline.core.protocols import Clock, Outcome
from tierline.core.types import Array, Arrays, SampleId, Tier

_log = logging.getLogger("tierline.engine")


class Lines(Protocol):
    """What the residents of one node share: its links, its sinks, its metrics, its thread."""

    id: str
    clock: Clock
    worker: Worker
    inline_ns: float
    """A run expected to take longer goes to the thread."""
    answered: Callable[[str, int, int], None]
    on_batch: Callable[[int], None]

    def to_child(self, child: str, body: m.Body) -> bool: ...

    def to_parent(self, body: m.Body) -> bool: ...

    def parent_is_up(self) -> bool: ...

    def parent_rtt_ns(self) -> int: ...

    def parent_is_congested(self) -> bool: ...

    def outcome(self, outcome: Outcome) -> None: ...

    def pump(self) -> None:
        """Look for work in every flow."""
        ...


class Resident:
    """Implements `Port` for its flow: links and sinks are the node's, engines its own."""

    def __init__(self, lines: Lines, plan: Plan, loaded: Loaded, memory: Memory) -> None:
        self.loaded = loaded.acquire()
        self.levels, self.row_ns = loaded.levels, loaded.row_ns
        self.times = SectionTimes()
        self._told: set[str] = set()
        """Failures of Sections that the log has."""
        self.num_running = 0
        """Captures and batches that are being run on the thread."""
        self.ends: SampleId | None = None
        """Once it is superseded: ids like this one, from this number on, belong to its successor."""
        self._lines = lines
        self._views = ViewBatches(lines.worker, lines.clock)
        self.to_child, self.to_parent = lines.to_child, lines.to_parent
        self.parent_is_up, self.parent_rtt_ns = lines.parent_is_up, lines.parent_rtt_ns
        self.parent_is_congested, self.outcome, self.answered = lines.parent_is_congested, lines.outcome, lines.answered
        placement = loaded.placement
        site = Site(lines.id, placement, self.levels, self, lines.clock, memory)
        self.flow: Junction | Forwarder
        if placement.tier is Tier.DEVICE and not placement.joins and not placement.runs:
            self.flow = Forwarder(site, plan)
        else:
            self.flow = Junction(site, plan)

    @property
    def placement(self) -> Placement:
        return self.loaded.placement

    @property
    def plan(self) -> Plan:
        return self.flow.plan

    def runs_inline(self, view: str) -> bool:
        """Whether a view's Section is quick enough for the event loop."""
        return self.row_ns[0, self.placement.views[view]] < self._lines.inline_ns

    async def run_view(self, view: str, image: Array) -> tuple[Arrays, list[int]]:
        """As `view_job`; or on the thread, with what else waits for its engine. Raises ShapeMismatch, EngineError."""
        if self.runs_inline(view):
            outputs, spans = self.view_job(view, image)()
            self.times.ran(0, 1, spans[SECTION], self._lines.clock.now_ns())
            return outputs, spans
        role = self.placement.views[view]
        prepare = partial(self.loaded.preprocess, image, self.levels.manifest.views.index(role))
        self.num_running += 1
        try:
            outputs, spans, num_rows = await self._views.run(
                self.levels[0].sections[role], prepare, self.plan.max_batch
            )
            self.times.ran(0, num_rows, spans[SECTION], self._lines.clock.now_ns())
            return outputs, spans
        finally:
            self.num_running -= 1

    def view_job(self, view: str, image: Array) -> Callable[[], tuple[Arrays, list[int]]]:
        """Outputs of a view's Section for one raw input, and the spans that takes."""
        role, clock = self.placement.views[view], self._lines.clock
        view_index = self.levels.manifest.views.index(role)

        def work() -> tuple[Arrays, list[int]]:
            began_ns = clock.now_ns()
            x_B = self.loaded.preprocess(image, view_index)[np.newaxis]
            prepared_ns = clock.now_ns()
            outputs = self.levels[0].run(role, x_B)
            spans = [0] * NUM_SPANS
            spans[PREPROCESS] = prepared_ns - began_ns
            spans[SECTION] = clock.now_ns() - prepared_ns
            return outputs, spans

        return work

    def from_parent(self, body: m.Body, arrived_ns: int) -> None:
        """What the parent said to the samples of this structure."""
        flow = self.flow
        if isinstance(body, m.Verdict):
            flow.verdict(body, arrived_ns)
        elif isinstance(body, m.Refused):
            flow.refused(body)
        elif isinstance(flow, Forwarder) and isinstance(body, m.Pull):
            flow.pull(body)
        elif isinstance(flow, Forwarder) and isinstance(body, m.Mode):
            flow.mode(body)

    def is_idle(self) -> bool:
        """Whether nothing of it is in flight here."""
        return not self.flow.num_open and not self.num_running

    def close(self) -> None:
        """Answer what is in flight and let the engines go."""
        self.flow.stop()
        self.loaded.release()

    def run_now(self, level: int, part: str, x_B: Array) -> tuple[Arrays, int] | None:
        if self.row_ns[level, part] * len(x_B) >= self._lines.inline_ns:
            return None
        self._lines.on_batch(len(x_B))
        return self._noted(level, len(x_B), self._timed(self.levels[level].run, part, x_B))

    def run(self, level: int, part: str, x_B: Array, done: Done) -> None:
        ran = self.run_now(level, part, x_B)
        if ran is not None:
            done(*ran)
            return
        runner = self.levels[level]
        self._lines.on_batch(len(x_B))
        self.num_running += 1

        def finished(result: tuple[Arrays, int], error: BaseException | None) -> None:
            self.num_running -= 1
            if error is not None:
                raise error
            done(*self._noted(level, len(x_B), result))
            self._lines.pump()

        self._lines.worker.submit(lambda: self._timed(runner.run, part, x_B), finished)

    def _noted(self, level: int, num_rows: int, result: tuple[Arrays, int]) -> tuple[Arrays, int]:
        if result[0]:
            self.times.ran(level, num_rows, result[1], self._lines.clock.now_ns())
        return result

    def _timed(self, run: Callable[[str, Array], Arrays], part: str, x_B: Array) -> tuple[Arrays, int]:
        started_ns = self._lines.clock.now_ns()
        try:
            outputs = run(part, x_B)
        except TierlineError as error:
            if str(error) not in self._told:  # once, not once a sample
                self._told.add(str(error))
                _log.warning("samples are answered without a Section that failed: %s", error)
            outputs = {}
        return outputs, self._lines.clock.now_ns() - started_ns
