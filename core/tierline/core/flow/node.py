"""The half of a node that does I/O: links, engines on threads, timers, around the sans-IO flow.

One event loop per process. `Node` is what an agent and a cloud have in common; sources, sinks and the registry of a
fleet are theirs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from tierline.core.bundle import Bundle
from tierline.core.errors import PlanError, TierlineError
from tierline.core.flow.forward import Forwarder
from tierline.core.flow.journey import CAPTURE, NUM_SPANS, PREPROCESS, SECTION, PartRow
from tierline.core.flow.junction import Junction
from tierline.core.flow.levels import FEATURE, LOGITS, Levels, engine_maker
from tierline.core.flow.port import Done
from tierline.core.flow.worker import Worker
from tierline.core.link import messages as m
from tierline.core.link.link import Link
from tierline.core.plan import Plan
from tierline.core.preprocess import Preprocessor
from tierline.core.protocols import Clock, Outcome
from tierline.core.types import Array, Arrays, NodeId, SampleId, Tier, Truth


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How Sections run on this machine."""

    name: str = "onnxruntime"
    threads: int = 1
    inline_ms: float = 0.5
    """A run expected to take longer goes to a worker thread, so that links stay responsive."""
    meanwhile: str = ""
    """The engine that answers while `name` is built, where that takes time."""


class Node:
    """Implements `Port` for its flow; owners feed captures in and get outcomes out."""

    def __init__(
        self,
        node_id: str,
        epoch: int,
        clock: Clock,
        engine: EngineSettings,
        *,
        on_outcome: Callable[[Outcome], None],
        on_answered: Callable[[str, int, int], None],
        on_batch: Callable[[int], None],
    ) -> None:
        """For metrics: `on_answered(exit, residence_ns, queue_ns)` hears of every part answered here, and
        `on_batch(rows)` of every run of a higher Section.
        """
        self.id, self.epoch, self.clock = node_id, epoch, clock
        self.plan: Plan | None = None
        self.bundle: Bundle | None = None
        self.flow: Junction | Forwarder | None = None
        self.parent: Link | None = None
        self.children: dict[str, Link] = {}
        self.idle_views: set[str] = set()
        self.run_id = ""
        """Identity of this run of the hierarchy, given by the root: records carry it."""
        self.minter: tuple[NodeId, int] = (NodeId(node_id), epoch)
        """Origin and epoch of the ids that this node's captures get: the junction's, unless it joins itself."""
        self._engine = engine
        self._on_outcome, self._on_batch = on_outcome, on_batch
        self.answered = on_answered
        self.on_capture_now: Callable[[m.CaptureNow], None] = lambda capture: None
        """Set by whoever has sources."""
        self._num_triggers = 0
        self._levels: Levels | None = None
        self._preprocess: Preprocessor | None = None
        self._row_ns: dict[tuple[int, str], int] = {}
        self._worker = Worker("engine")
        self._pumping = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0

    # --- the Plan ---------------------------------------------------------------------------------------------

    def adopt(self, plan: Plan, bundle: Bundle) -> None:
        """Take a Plan: knobs at once; a new structure rebuilds the flow, after answering what is in flight."""
        placement = plan.placement(self.id)
        same_bundle = self.bundle is not None and bundle.digest == self.bundle.digest
        if self.flow is not None and same_bundle and placement == self.flow.placement:
            self.flow.use(plan)
            self.plan = plan
            return
        levels = Levels(
            bundle,
            engine_maker(self._engine.name, self._engine.threads, self._engine.meanwhile),
            views=placement.views,
            joins=bool(placement.joins),
            runs=set(placement.runs),
        )
        if self.flow is not None and self._levels is not None:
            self.flow.stop()
            self._levels.close()
        self._levels = levels
        self._preprocess = Preprocessor(bundle.manifest.preprocess)
        self.plan, self.bundle = plan, bundle
        is_device = placement.tier is Tier.DEVICE and not placement.joins and not placement.runs
        kind: type[Forwarder] | type[Junction] = Forwarder if is_device else Junction
        self.flow = kind(self.id, plan, placement, levels, self, self.clock)
        self._measure(levels)
        if isinstance(self.flow, Junction):
            self.flow.ignore(self.idle_views)
            for child in self.children:
                self.flow.child_up(child)

    def engine_states(self) -> dict[str, str]:
        """By Section: `ready`, or how far the engine is that it waits for while another answers."""
        return {} if self._levels is None else self._levels.engine_states()

    def _measure(self, levels: Levels) -> None:
        """Time one row of every Section, to know which may run on the event loop."""
        for index in range(len(levels)):
            for part, engine in levels[index].sections.items():
                name, spec = next(iter(engine.spec.inputs.items()))
                x_B = np.zeros((1, *spec.shape), dtype=spec.dtype)
                times = []
                for _ in range(5):
                    started_ns = self.clock.now_ns()
                    engine.run({name: x_B})
                    times.append(self.clock.now_ns() - started_ns)
                self._row_ns[index, part] = min(times)

    def ignore(self, views: set[str]) -> None:
        """Do not wait for these own views: nobody brings them."""
        self.idle_views = views
        if isinstance(self.flow, Junction):
            self.flow.ignore(views)

    # --- captures ---------------------------------------------------------------------------------------------

    async def capture(
        self,
        view: str,
        seq: int,
        image: Array,
        *,
        capture_ns: int,
        truth: Truth | None,
        budget_ms: float,
        id_: SampleId | None = None,
    ) -> SampleId:
        """Run one raw input through its level-0 Section (here, or on the worker thread where that takes long) and into
        the flow.

        Raises ShapeMismatch, EngineError, AdmissionRefused.
        """
        if self.flow is None or self._levels is None or self._preprocess is None or self.plan is None:
            raise TierlineError(f"{self.id}: no Plan yet")
        flow, levels, preprocess = self.flow, self._levels, self._preprocess
        role = flow.placement.views[view]
        view_index = levels.manifest.views.index(role)

        def work() -> tuple[Arrays, list[int]]:
            began_ns = self.clock.now_ns()
            x_B = preprocess(image, view_index)[np.newaxis]
            prepared_ns = self.clock.now_ns()
            outputs = levels[0].run(role, x_B)
            spans = [0] * NUM_SPANS
            spans[CAPTURE] = capture_ns
            spans[PREPROCESS] = prepared_ns - began_ns
            spans[SECTION] = self.clock.now_ns() - prepared_ns
            return outputs, spans

        arrived_ns = self.clock.now_ns() - capture_ns
        if self._row_ns[0, role] < self._engine.inline_ms * 1e6:
            part, spans = work()
        else:
            part, spans = await self._worker.run(work)
            if flow is not self.flow:
                raise PlanError(f"the Plan changed while view {view!r} was being run")
        sample = id_ or SampleId(*self.minter, seq)
        row = PartRow(
            owner="",
            name=view,
            arrived_ns=arrived_ns,
            decode_ns=0,
            logits_K=part[LOGITS][0] if levels[0].has_exit else None,
            feature=part[FEATURE][0] if FEATURE in part else None,
            truth=truth,
            own_ns=tuple(spans),
        )
        flow.local(view, sample, row, arrived_ns + int((budget_ms or self.plan.budget_ms) * 1e6))
        self.schedule()
        return sample

    # --- links ------------------------------------------------------------------------------------------------

    def body(self, link: Link, body: m.Body, arrived_ns: int, decode_ns: int) -> None:
        """Anything a peer said; wrong peers are told, never obeyed."""
        flow = self.flow
        if flow is None:
            return
        if link is self.parent:
            if isinstance(body, m.Verdict):
                flow.verdict(body, arrived_ns)
            elif isinstance(body, m.Refused):
                flow.refused(body)
            elif isinstance(flow, Forwarder) and isinstance(body, m.Pull):
                flow.pull(body)
            elif isinstance(flow, Forwarder) and isinstance(body, m.Mode):
                flow.mode(body)
            elif isinstance(body, m.CaptureNow):
                self.on_capture_now(body)
        elif isinstance(flow, Junction):
            if isinstance(body, m.Part):
                flow.part(link.peer, body, arrived_ns)
            elif isinstance(body, m.Features):
                flow.features(link.peer, body)
        # At once, so that the answer is ready when the link's reader looks for one to send.
        self._pump()

    def trigger(self) -> SampleId:
        """`join = trigger`: ask every view below this junction, and our own, for one capture."""
        assert self.plan is not None
        sample = SampleId(NodeId(self.id), self.epoch, self._num_triggers)
        self._num_triggers += 1
        capture = m.CaptureNow((sample,), self.plan.budget_ms)
        for link in self.children.values():
            link.post(capture)
        self.on_capture_now(capture)
        return sample

    def parent_changed(self, is_up: bool) -> None:
        """The link to the parent opened, or was lost."""
        if not is_up and self.flow is not None:
            self.flow.parent_down()
        self.schedule()

    def child_up(self, link: Link) -> None:
        self.children[link.peer] = link
        if isinstance(self.flow, Junction):
            self.flow.child_up(link.peer)

    def child_down(self, link: Link) -> None:
        if self.children.get(link.peer) is link and not link.is_up:
            del self.children[link.peer]
            if isinstance(self.flow, Junction):
                self.flow.child_down(link.peer)
                self.schedule()

    # --- Port -------------------------------------------------------------------------------------------------

    def to_child(self, child: str, body: m.Body) -> bool:
        link = self.children.get(child)
        return link is not None and link.post(body)

    def to_parent(self, body: m.Body) -> bool:
        return self.parent is not None and self.parent.post(body)

    def parent_is_up(self) -> bool:
        return self.parent is not None and self.parent.is_up

    def parent_rtt_ns(self) -> int:
        return self.parent.rtt_ns if self.parent is not None else 0

    def parent_is_congested(self) -> bool:
        return self.parent is not None and self.parent.is_congested

    def outcome(self, outcome: Outcome) -> None:
        self._on_outcome(replace(outcome, run=self.run_id))

    def run_now(self, level: int, part: str, x_B: Array) -> tuple[Arrays, int] | None:
        assert self._levels is not None
        if self._row_ns[level, part] * len(x_B) >= self._engine.inline_ms * 1e6:
            return None
        self._on_batch(len(x_B))
        return self._timed(self._levels[level].run, part, x_B)

    def run(self, level: int, part: str, x_B: Array, done: Done) -> None:
        ran = self.run_now(level, part, x_B)
        if ran is not None:
            done(*ran)
            return
        assert self._levels is not None
        runner = self._levels[level]
        self._on_batch(len(x_B))

        def finished(result: tuple[Arrays, int], error: BaseException | None) -> None:
            if error is not None:
                raise error
            done(*result)
            self._pump()

        self._worker.submit(lambda: self._timed(runner.run, part, x_B), finished)

    def _timed(self, run: Callable[[str, Array], Arrays], part: str, x_B: Array) -> tuple[Arrays, int]:
        started_ns = self.clock.now_ns()
        try:
            outputs = run(part, x_B)
        except TierlineError:
            outputs = {}
        return outputs, self.clock.now_ns() - started_ns

    # --- the event loop ---------------------------------------------------------------------------------------

    def schedule(self) -> None:
        """Pump once, after everything that has already arrived was taken in."""
        if not self._pumping:
            self._pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        flow = self.flow
        if flow is None:
            return
        now_ns = self.clock.now_ns()
        flow.expire(now_ns)
        flow.pump()
        due_ns = flow.next_deadline_ns()
        if due_ns is not None and (self._timer is None or due_ns < self._timer_ns):
            if self._timer is not None:
                self._timer.cancel()
            self._timer_ns = due_ns
            self._timer = asyncio.get_running_loop().call_later(max(0.0, (due_ns - now_ns) / 1e9), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._pump()

    def close(self) -> None:
        """Answer what is in flight and release engines."""
        if self.flow is not None:
            self.flow.stop()
            self.flow = None
        if self._timer is not None:
            self._timer.cancel()
        self._worker.close()
        if self._levels is not None:
            self._levels.close()


def new_epoch() -> int:
    """One per process start, growing: microseconds of wall-clock time."""
    return time.time_ns() // 1000
