"""A node that joins the views of a sample, decides exits, runs Sections and escalates. No I/O; time is injected.

    JOIN --complete, or window over--> decide the level's exit --confident--> answer
                                          | unsure
                                          v
                             PULL features not yet here --all came--> RUN the next Section --> decide its exit ...
                                          | the next Section runs elsewhere
                                          v
                                    UP: escalate to the parent --verdict--> answer

Whatever happens, each part receives exactly one verdict: from an exit, from the parent, or the best so far, marked
degraded. `pump` does the work that has become possible, in batches; the driver calls it after feeding messages in.
"""

from __future__ import annotations

from collections.abc import Iterable

from tierline.core.errors import AdmissionRefused, PlanError, TierlineError
from tierline.core.flow.answers import Answers
from tierline.core.flow.attendance import Attendance
from tierline.core.flow.climb import Climb
from tierline.core.flow.exits import Exits
from tierline.core.flow.gate import Gate
from tierline.core.flow.journey import Journey, PartRow, State, is_beyond
from tierline.core.flow.mode import ModeChooser
from tierline.core.flow.port import Site
from tierline.core.flow.pulls import Pulls
from tierline.core.flow.short import ShortWay
from tierline.core.flow.timers import Timers
from tierline.core.flow.upward import Upward
from tierline.core.link import messages as m
from tierline.core.plan import Plan
from tierline.core.types import SampleId

MAX_OPEN = 8192
"""Samples in flight at one junction; more are refused, and their senders answer alone."""
DEADLINE, WINDOW = "deadline", "window"


class Junction:
    """The state machine of an edge node or a cloud."""

    def __init__(self, site: Site, plan: Plan) -> None:
        self.node, self.placement = site.node, site.placement
        self.ends: SampleId | None = None
        """Under another Plan already: views of the ids that this node mints, from this number on. Their senders will
        send them again once they have heard of it."""
        self.counts = site.memory.counts
        self._levels, self._port, self._clock = site.levels, site.port, site.clock
        self._open: dict[SampleId, Journey] = {}
        self._timers = Timers(self._open)
        self._joined: list[Journey] = []
        self._attendance = Attendance(site.node, site.placement, site.memory.started_ns)
        self._gate = Gate(site, self._attendance)
        self._answers = Answers(site, self._open)
        answer = self._answers.answer
        self._exits = Exits(site, answer=answer)
        self._upward = Upward(site, self._open, answer=answer)
        self._climb = Climb(site, self._upward, settle=self._exits.settle, answer=answer)
        self._pulls = Pulls(site, self._open, self._gate, self._climb, answer=answer)
        self._short = ShortWay(
            site,
            self._climb,
            is_known=lambda sample: sample in self._open or sample in self._answers,
            remember=self._answers.remember,
        )
        self._mode: ModeChooser | None = None
        self.use(plan)

    def use(self, plan: Plan) -> None:
        """Take over a Plan's knobs. Structure must be the one this junction was built for."""
        if plan.placement(self.node) != self.placement:
            raise PlanError(f"plan {plan.version}: another placement of {self.node!r}; restart the node to take it")
        self.plan = self._climb.plan = self._upward.plan = self._short.plan = self._exits.plan = plan
        self._answers.use(plan.version)
        self._attendance.use(plan)
        self._gate.use(plan)
        self._mode = None
        first = self._levels[0]
        if plan.mode == "auto" and self.placement.joins and first.has_exit and first.feature_spec is not None:
            self._mode = ModeChooser(first, plan.codecs[0], self.placement.joins[0])

    # --- what arrives -----------------------------------------------------------------------------------------

    def child_up(self, child: str) -> None:
        """A child connected: samples wait for its views from now on."""
        self._attendance.up(child)
        if self._mode is not None and self._mode.eager:
            self._port.to_child(child, m.Mode(0, True))

    def child_down(self, child: str) -> None:
        """A child was lost: nobody waits for its views any more."""
        self._attendance.down(child)
        for journey in list(self._open.values()):
            if journey.state is State.JOIN:
                self._join_if_complete(journey)
            elif journey.state is State.PULL:
                self._pulls.lost(journey, child)

    def part(self, child: str, part: m.Part, arrived_ns: int, ends: SampleId | None = None) -> None:
        """Rows of one view, or fused features of a junction below. `ends`: of rows made under a Plan that is gone."""
        beyond = self.ends or ends
        if beyond is not None and not part.fused and any(is_beyond(sample, beyond) for sample in part.ids):
            if not all(is_beyond(sample, beyond) for sample in part.ids):
                self._part(child, part, arrived_ns, beyond)
            # Nothing answers rows that will be sent again. Any message acknowledges these, which their sender may be
            # waiting for before it sends more.
            self._port.to_child(child, m.Refused(part.level, part.name, (), PlanError.code, "made under another Plan"))
            return
        self._part(child, part, arrived_ns, None)

    def _part(self, child: str, part: m.Part, arrived_ns: int, beyond: SampleId | None) -> None:
        try:
            logits_BK, feature_B, name = self._gate.read(child, part)
        except TierlineError as error:
            self._answers.refuse(child, part, error)
            return
        decode_ns = self._clock.now_ns() - arrived_ns
        if part.fused and feature_B is not None and self._short.take(child, part, feature_B, arrived_ns, decode_ns):
            return
        for row, sample in enumerate(part.ids):
            if beyond is not None and is_beyond(sample, beyond):
                continue
            logits_K = None if logits_BK is None else logits_BK[row]
            feature = None if feature_B is None else feature_B[row]
            self._take(
                PartRow(child, part.name, arrived_ns, decode_ns, logits_K, feature),
                sample,
                part.level,
                name,
                arrived_ns + int(part.budget_ms[row] * 1e6),
                part.num_views[row] if part.fused else 0,
            )

    def local(self, view: str, sample: SampleId, row: PartRow, deadline_ns: int) -> None:
        """A view that this node captured and ran through its own level-0 Section. Raises AdmissionRefused."""
        journey = self._open.get(sample)
        if journey is not None and self._gate.roles[view] in journey.parts:
            raise AdmissionRefused(f"view {view!r} of sample {sample} is in flight already")
        if journey is None and len(self._open) >= MAX_OPEN and sample not in self._answers:
            raise AdmissionRefused(f"{self.node!r} has {MAX_OPEN} samples in flight")
        self._take(row, sample, 0, self._gate.roles[view], deadline_ns, 0)

    def features(self, child: str, features: m.Features) -> None:
        """Answer to a Pull."""
        self._pulls.came(child, features)

    def verdict(self, verdict: m.Verdict, arrived_ns: int) -> None:
        """The parent's answers to what was escalated."""
        self._upward.verdict(verdict, arrived_ns)

    def refused(self, refused: m.Refused) -> None:
        """The parent cannot use what was escalated."""
        self._upward.refused(refused)

    def parent_down(self) -> None:
        """The parent was lost: what waits for it is answered by the best exit so far."""
        self._upward.lost()
        self._answers.flush()

    def stop(self) -> None:
        """The node ends, or takes another Plan: whatever is open is answered by the best exit so far."""
        for journey in list(self._open.values()):
            self._answers.give_up(journey, "stopped")
        self._answers.flush()

    # --- work -------------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Do what has become possible, in batches, until nothing is left."""
        while self._joined or self._climb.has_work():
            if self._joined:
                batch, self._joined = self._joined[: self.plan.max_batch], self._joined[self.plan.max_batch :]
                # A sample whose time ran out after its join was answered meanwhile.
                alive = [x for x in batch if x.state is State.RUN]
                if alive:
                    self._decide_first(alive)
            self._climb.work()
        self._answers.flush()

    def next_deadline_ns(self) -> int | None:
        """When `expire` has something to do."""
        return self._timers.next_ns

    def expire(self, now_ns: int) -> None:
        """Close join windows and answer samples whose time is up."""
        for sample, kind in self._timers.due(now_ns):
            journey = self._open.get(sample)
            if journey is None:
                continue
            if kind == DEADLINE:
                if journey.state is State.UP:
                    self._upward.in_vain(journey, now_ns)
                self._answers.give_up(journey, "deadline")
            elif journey.state is State.JOIN:
                if self._attendance.still_waits(journey.parts.keys(), now_ns):
                    self._timers.add(self._attendance.grace_ends_ns, sample, WINDOW)
                else:
                    self._joined_now(journey, now_ns)

    def ignore(self, views: Iterable[str]) -> None:
        """Views that the Plan places here and nobody brings: samples do not wait for them."""
        self._attendance.ignore({self.placement.views[view] for view in views if view in self.placement.views})

    def awaits_nodes(self) -> bool:
        """Whether a child that brings views has yet to connect, within the grace of a common start."""
        return self._attendance.still_waits({}.keys(), self._clock.now_ns())

    @property
    def num_open(self) -> int:
        return len(self._open)

    @property
    def versions(self) -> set[int]:
        """Of the Plan: rows made under these fit here."""
        return self._gate.accepted_plans

    def holds(self, sample: SampleId) -> bool:
        """Whether this sample is in flight here."""
        return sample in self._open

    def next_seq(self, epoch: int) -> int:
        """A number above all that views brought of the ids that this node mints in this epoch."""
        seen = (*self._attendance.latest(), *self._open)
        return 1 + max((x.seq for x in seen if (x.origin, x.epoch) == (self.node, epoch)), default=-1)

    # --- joining ----------------------------------------------------------------------------------------------

    def _take(self, row: PartRow, sample: SampleId, level: int, name: str, deadline_ns: int, num_views: int) -> None:
        if name != "*" and self.plan.join.by != "none" and self._attendance.arrived(name, sample):
            for waiting in [x for x in self._open.values() if x.state is State.JOIN]:
                self._join_if_complete(waiting)
        if self._answers.again(sample, row):
            return
        journey = self._open.get(sample)
        if journey is None:
            if len(self._open) >= MAX_OPEN:
                error = AdmissionRefused(f"{self.node!r} has {MAX_OPEN} samples in flight")
                self._answers.refuse(row.owner, m.Part(level, row.name, (sample,), 0, (0.0,), {}), error)
                return
            journey = self._open[sample] = Journey(sample, deadline_ns, level)
            self._timers.add(deadline_ns, sample, DEADLINE)
            if name != "*" and self.plan.join.by != "none":
                self._timers.add(row.arrived_ns + int(self.plan.join.window_ms * 1e6), sample, WINDOW)
        if name in journey.parts:
            return  # first view wins
        journey.parts[name] = row
        row.is_late = journey.state is not State.JOIN
        if name == "*":
            journey.feature, journey.num_views = row.feature, num_views
            journey.joined_ns = journey.mark_ns = self._clock.now_ns()
            self._climb.enqueue(journey)
        elif journey.state is State.JOIN:
            self._join_if_complete(journey)

    def _join_if_complete(self, journey: Journey) -> None:
        now_ns = self._clock.now_ns()
        if self.plan.join.by == "none" or self._attendance.is_complete(journey.id, journey.parts.keys(), now_ns):
            self._joined_now(journey, now_ns)

    def _joined_now(self, journey: Journey, now_ns: int) -> None:
        if journey.state is not State.JOIN:
            return
        journey.state = State.RUN
        journey.joined_ns = journey.mark_ns = now_ns
        journey.num_views = len(journey.parts)
        journey.is_short = self.plan.join.by != "none" and journey.num_views < self.plan.join.min_views
        self._joined.append(journey)

    def _decide_first(self, batch: list[Journey]) -> None:
        """The first exit; what it is not sure of needs features."""
        hard: list[Journey] = []
        self._exits.first(batch, hard.extend)
        if self._mode is not None and self._mode.decided(len(batch), len(hard)):
            for child in self._attendance.children():
                self._port.to_child(child, m.Mode(0, self._mode.eager))
        if hard:
            self._pulls.need(hard)
