"""The half of a node that does I/O: links, engines on threads, timers, around the sans-IO flow.

One event loop per process. `Node` is what an agent and a cloud have in common; sources, sinks and the registry of a
fleet are theirs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

from tierline.core.bundle import Bundle
from tierline.core.errors import TierlineError
from tierline.core.flow.forward import Forwarder
from tierline.core.flow.journey import CAPTURE, PartRow
from tierline.core.flow.junction import Junction
from tierline.core.flow.levels import FEATURE, LOGITS
from tierline.core.flow.loaded import EngineSettings as EngineSettings
from tierline.core.flow.resident import Resident
from tierline.core.flow.turn import Turn
from tierline.core.flow.worker import Worker
from tierline.core.link import messages as m
from tierline.core.link.link import Link
from tierline.core.plan import Plan
from tierline.core.protocols import Clock, Outcome
from tierline.core.types import Array, NodeId, SampleId, Truth


class Node:
    """Implements `Lines` for its residents; owners feed captures in and get outcomes out."""

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
        self.parent: Link | None = None
        self.children: dict[str, Link] = {}
        self.idle_views: set[str] = set()
        self.run_id = ""
        """Identity of this run of the hierarchy, given by the root: records carry it."""
        self.minter: tuple[NodeId, int] = (NodeId(node_id), epoch)
        """Origin and epoch of the ids that this node's captures get: the junction's, unless it joins itself."""
        self.engine_settings = engine
        """How Sections run here."""
        self.inline_ns = engine.inline_ms * 1e6
        self.worker = Worker("engine")
        self._on_outcome, self.on_batch = on_outcome, on_batch
        self.answered = on_answered
        self.on_capture_now: Callable[[m.CaptureNow], None] = lambda capture: None
        """Set by whoever has sources."""
        self.num_triggers = 0
        self._pumping = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0
        self.turn = Turn(self, engine)
        self.residents = self.turn.residents

    # --- the Plan ---------------------------------------------------------------------------------------------

    @property
    def plan(self) -> Plan | None:
        """In force."""
        return self.residents.plan

    @property
    def bundle(self) -> Bundle | None:
        return self.residents.bundle

    @property
    def flow(self) -> Junction | Forwarder | None:
        """Where new samples go; during a pause between two Plans, where the older ones end."""
        found = self.residents.now or next(iter(self.residents.all()), None)
        return None if found is None else found.flow

    def adopt(self, plan: Plan, bundle: Bundle) -> None:
        """Take a Plan: knobs at once; a new structure rebuilds the flow, after answering what is in flight."""
        if self.residents.has_structure(plan, bundle):
            self.residents.use(plan)
            return
        self.residents.replace(plan, bundle)
        self.welcome(self.residents.now)

    def welcome(self, resident: Resident | None) -> None:
        """Tell a new flow who is here."""
        if resident is not None and isinstance(resident.flow, Junction):
            resident.flow.ignore(self.idle_views)
            for child in self.children:
                resident.flow.child_up(child)

    def engine_states(self) -> dict[str, str]:
        """By Section: `ready`, or how far the engine is that it waits for while another answers."""
        now = self.residents.now
        return {} if now is None else now.levels.engine_states()

    def ignore(self, views: set[str]) -> None:
        """Do not wait for these own views: nobody brings them."""
        self.idle_views = views
        for junction in self._junctions():
            junction.ignore(views)

    def _junctions(self) -> list[Junction]:
        return [resident.flow for resident in self.residents.all() if isinstance(resident.flow, Junction)]

    @property
    def num_open(self) -> int:
        """Samples in flight here, under whatever Plan."""
        return sum(resident.flow.num_open for resident in self.residents.all())

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
        the flow. Waits during a pause between two Plans.

        Raises ShapeMismatch, EngineError, AdmissionRefused.
        """
        residents = self.residents
        if residents.plan is None:
            raise TierlineError(f"{self.id}: no Plan yet")
        arrived_ns = self.clock.now_ns() - capture_ns
        while True:
            sample = id_ or SampleId(*self.minter, seq)
            resident = residents.of_sample(sample) or await self.turn.resident_of(sample)
            residents.latest[view] = sample
            part, spans = await resident.run_view(view, image)
            # Another Plan, or another process of the junction, may have come while the thread ran.
            sample = id_ or SampleId(*self.minter, seq)
            if residents.of_sample(sample) is resident:
                break
        spans[CAPTURE] = capture_ns
        row = PartRow(
            owner="",
            name=view,
            arrived_ns=arrived_ns,
            decode_ns=0,
            logits_K=part[LOGITS][0] if LOGITS in part else None,
            feature=part[FEATURE][0] if FEATURE in part else None,
            truth=truth,
            own_ns=tuple(spans),
            image=image if residents.keeps_images else None,
        )
        deadline_ns = arrived_ns + int((budget_ms or resident.plan.budget_ms) * 1e6)
        resident.flow.local(view, sample, row, deadline_ns)
        self.schedule()
        return sample

    # --- links ------------------------------------------------------------------------------------------------

    def body(self, link: Link, body: m.Body, arrived_ns: int, decode_ns: int) -> None:
        """Anything a peer said; wrong peers are told, never obeyed."""
        residents = self.residents
        if not residents.all() and residents.waiting is None:
            return  # no Plan yet, or closed
        if isinstance(body, m.CaptureNow):
            if link is self.parent:
                self.on_capture_now(body)
        elif isinstance(body, m.Part):
            resident = residents.of_version(body.plan)
            if resident is None:
                self.turn.park(link, body, arrived_ns)
            elif link is not self.parent and isinstance(resident.flow, Junction):
                ends = None if body.plan in resident.flow.versions else residents.ended_at(body.plan)
                resident.flow.part(link.peer, body, arrived_ns, ends)
        else:
            for resident in residents.all() if residents.is_single() else self._concerned(body):
                if link is self.parent:
                    resident.from_parent(body, arrived_ns)
                elif isinstance(body, m.Features) and isinstance(resident.flow, Junction):
                    resident.flow.features(link.peer, body)
        # At once, so that the answer is ready when the link's reader looks for one to send.
        self.pump()

    def _concerned(self, body: m.Body) -> list[Resident]:
        """While two are resident: whose samples a message is about; what is about none goes to all."""
        if isinstance(body, m.Features):
            return self.residents.holding((*body.ids, *body.gone))
        return self.residents.holding(body.ids) if isinstance(body, _OF_SAMPLES) else self.residents.all()

    def trigger(self) -> SampleId:
        """`join = trigger`: ask every view below this junction, and our own, for one capture."""
        assert self.plan is not None
        sample = SampleId(NodeId(self.id), self.epoch, self.num_triggers)
        self.num_triggers += 1
        capture = m.CaptureNow((sample,), self.plan.budget_ms)
        for link in self.children.values():
            link.post(capture)
        self.on_capture_now(capture)
        return sample

    def parent_changed(self, is_up: bool) -> None:
        """The link to the parent opened, or was lost."""
        if not is_up:
            for resident in self.residents.all():
                resident.flow.parent_down()
        self.schedule()

    def child_up(self, link: Link) -> None:
        self.children[link.peer] = link
        for junction in self._junctions():
            junction.child_up(link.peer)

    def child_down(self, link: Link) -> None:
        if self.children.get(link.peer) is link and not link.is_up:
            del self.children[link.peer]
            for junction in self._junctions():
                junction.child_down(link.peer)
            self.schedule()

    # --- Lines ------------------------------------------------------------------------------------------------

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

    # --- the event loop ---------------------------------------------------------------------------------------

    def schedule(self) -> None:
        """Pump once, after everything that has already arrived was taken in."""
        if not self._pumping:
            self._pumping = True
            asyncio.get_running_loop().call_soon(self.pump)

    def pump(self) -> None:
        """Do what has become possible in every flow, and come back when the next thing is due."""
        self._pumping = False
        now_ns, soonest_ns = self.clock.now_ns(), None
        for resident in self.residents.all():
            flow = resident.flow
            flow.expire(now_ns)
            flow.pump()
            due_ns = flow.next_deadline_ns()
            if due_ns is not None and (soonest_ns is None or due_ns < soonest_ns):
                soonest_ns = due_ns
        if soonest_ns is not None and (self._timer is None or soonest_ns < self._timer_ns):
            if self._timer is not None:
                self._timer.cancel()
            self._timer_ns = soonest_ns
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, (soonest_ns - now_ns) / 1e9), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.pump()

    def close(self) -> None:
        """Answer what is in flight and release engines."""
        for resident in self.residents.all():
            resident.flow.stop()
        if self._timer is not None:
            self._timer.cancel()
        self.turn.close()
        self.worker.close()
        self.residents.close()


_OF_SAMPLES = (m.Verdict, m.Refused, m.Pull)


def new_epoch() -> int:
    """One per process start, growing: microseconds of wall-clock time."""
    return time.time_ns() // 1000
