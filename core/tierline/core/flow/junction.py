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

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Sequence

from tierline.core.decide import leaves
from tierline.core.errors import AdmissionRefused, PlanError, TierlineError
from tierline.core.flow import journey as j
from tierline.core.flow.attendance import Attendance
from tierline.core.flow.climb import Climb
from tierline.core.flow.coding import decode_outputs, decode_rows
from tierline.core.flow.journey import Answered, Journey, PartRow, State, count_degraded
from tierline.core.flow.levels import LOGITS, NO_EXIT, Levels, stack
from tierline.core.flow.mode import ModeChooser
from tierline.core.flow.port import Port
from tierline.core.flow.reply import Replier
from tierline.core.flow.short import ShortWay
from tierline.core.flow.timers import Timers
from tierline.core.link import messages as m
from tierline.core.plan import Placement, Plan
from tierline.core.protocols import Clock
from tierline.core.types import Array, Arrays, SampleId

MAX_OPEN = 8192
"""Samples in flight at one junction; more are refused, and their senders answer alone."""
DEADLINE, WINDOW = "deadline", "window"
_WAITS = {State.PULL: j.PULL, State.RUN: j.QUEUE, State.UP: j.SEND}
MAX_ANSWERED = 4096
"""Verdicts remembered for duplicates and late views."""


class Junction:
    """The state machine of an edge node or a cloud."""

    def __init__(self, node: str, plan: Plan, placement: Placement, levels: Levels, port: Port, clock: Clock) -> None:
        self.node, self.placement = node, placement
        self.counts: dict[str, int] = defaultdict(int)
        """Samples by exit, and `degraded`, `late`, `refused`, `batches`, `batched`."""
        self._levels, self._port, self._clock = levels, port, clock
        self._open: dict[SampleId, Journey] = {}
        self._answered: OrderedDict[SampleId, Answered] = OrderedDict()
        self._timers = Timers(self._open)
        self._joined: list[Journey] = []
        self._climb = Climb(node, placement, levels, port, clock, self.counts, settle=self._settle, answer=self._answer)
        self._short = ShortWay(
            node,
            placement,
            levels,
            port,
            clock,
            self.counts,
            self._climb,
            is_known=lambda sample: sample in self._open or sample in self._answered,
            remember=self._remember,
        )
        self._mode: ModeChooser | None = None
        self._attendance = Attendance(node, placement, clock.now_ns())
        self._accepted_plans: set[int] = set()
        """Versions that share our structure: rows made under an older one still fit."""
        self._replier = Replier(node, placement.tier.value, levels.task, port, clock)
        self.use(plan)

    def use(self, plan: Plan) -> None:
        """Take over a Plan's knobs. Structure must be the one this junction was built for."""
        if plan.placement(self.node) != self.placement:
            raise PlanError(f"plan {plan.version}: another placement of {self.node!r}; restart the node to take it")
        self.plan = self._climb.plan = self._short.plan = plan
        self._accepted_plans.add(plan.version)
        self._replier.plan = plan.version
        self._attendance.use(plan)
        self._mode = None
        first = self._levels[0]
        if plan.mode == "auto" and self.placement.joins and first.has_exit and first.feature_spec is not None:
            self._mode = ModeChooser(first, plan.codecs[0], self.placement.joins[0])
        self._roles = {view: role for node in plan.nodes.values() for view, role in node.views.items()}

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
                lost = {name for name in journey.awaited if journey.parts[name].owner == child}
                self._features_settled(journey, lost)

    def part(self, child: str, part: m.Part, arrived_ns: int) -> None:
        """Rows of one view, or fused features of a junction below."""
        try:
            logits_BK, feature_B, name = self._read(child, part)
        except TierlineError as error:
            self._refuse(child, part, error)
            return
        decode_ns = self._clock.now_ns() - arrived_ns
        if part.fused and feature_B is not None and self._short.take(child, part, feature_B, arrived_ns, decode_ns):
            return
        for row, sample in enumerate(part.ids):
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
        if journey is not None and self._roles[view] in journey.parts:
            raise AdmissionRefused(f"view {view!r} of sample {sample} is in flight already")
        if journey is None and len(self._open) >= MAX_OPEN and sample not in self._answered:
            raise AdmissionRefused(f"{self.node!r} has {MAX_OPEN} samples in flight")
        self._take(row, sample, 0, self._roles[view], deadline_ns, 0)

    def features(self, child: str, features: m.Features) -> None:
        """Answer to a Pull."""
        started_ns = self._clock.now_ns()
        role = self._roles.get(features.name, features.name)
        rows: Sequence[Array | None] = [None] * len(features.gone)
        if features.feature is not None:
            spec = self._levels[0].feature_spec
            try:
                if spec is None:
                    raise PlanError("features came for a level that has none")
                rows = [*decode_rows(features.feature, spec), *rows]
            except TierlineError as error:
                self.counts["refused"] += 1
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
            self._features_settled(journey, {role})

    def verdict(self, verdict: m.Verdict, arrived_ns: int) -> None:
        """The parent's answers to what was escalated."""
        try:
            outputs = decode_outputs(verdict, self._levels[self._levels.root_level].logits_spec)
        except TierlineError:
            for sample in verdict.ids:
                self._answer_waiting(sample, "bad_verdict")
            return
        now_ns = self._clock.now_ns()
        for row, sample in enumerate(verdict.ids):
            journey = self._open.get(sample)
            if journey is None or journey.state is not State.UP:
                self.counts["late"] += 1
                continue
            above = tuple(m.HopTimes(hop.node, hop.tier, (hop.rows_ns[row],)) for hop in verdict.hops)
            residence_ns = above[0].rows_ns[0][0] if above else 0
            journey.spend(j.SEND, max(0, arrived_ns - journey.mark_ns - residence_ns))
            journey.spend(j.DECODE, now_ns - arrived_ns)
            journey.mark_ns = now_ns
            journey.above = above
            journey.exit = verdict.exits[row]
            journey.outputs = {name: rows[row] for name, rows in outputs.items()}
            self._answer(journey, verdict.degraded[row])

    def refused(self, refused: m.Refused) -> None:
        """The parent cannot use what was escalated."""
        for sample in refused.ids:
            self._answer_waiting(sample, f"refused: {refused.message}")

    def parent_down(self) -> None:
        """The parent was lost: what waits for it is answered by the best exit so far."""
        for sample in list(self._open):
            self._answer_waiting(sample, "no_parent")
        self._replier.flush()

    def _answer_waiting(self, sample: SampleId, reason: str) -> None:
        """The parent will not answer this sample, if it is one that waits for it."""
        journey = self._open.get(sample)
        if journey is not None and journey.state is State.UP:
            journey.waited(j.SEND, self._clock.now_ns())
            self._answer(journey, reason)

    def stop(self) -> None:
        """The node ends, or takes another Plan: whatever is open is answered by the best exit so far."""
        for journey in list(self._open.values()):
            self._give_up(journey, "stopped")
        self._replier.flush()

    # --- work -------------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Do what has become possible, in batches, until nothing is left."""
        while self._joined or self._climb.has_work():
            if self._joined:
                batch, self._joined = self._joined[: self.plan.max_batch], self._joined[self.plan.max_batch :]
                # A sample whose time ran out after its join was answered meanwhile.
                self._decide_parts([x for x in batch if x.state is State.RUN])
            self._climb.work()
        self._replier.flush()

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
                self._give_up(journey, "deadline")
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

    # --- joining ----------------------------------------------------------------------------------------------

    def _read(self, child: str, part: m.Part) -> tuple[Array | None, Array | None, str]:
        """Check and decode a Part; returns logits, features and the Bundle's part name."""
        if part.plan not in self._accepted_plans:
            raise PlanError(f"made under plan {part.plan}, this node runs plan {self.plan.version}")
        if part.fused:
            if self.placement.joins:
                raise PlanError(f"{self.node!r} joins views itself; fused features go to a node above")
            if part.level >= self._levels.root_level:
                raise PlanError(f"level {part.level} has nothing above it")
            if part.feature is None:
                raise PlanError("a fused part needs its feature")
            return None, decode_rows(part.feature, self._levels[part.level].fused_feature_spec()), "*"
        if part.level != 0:
            raise PlanError(f"a view of level {part.level}: views have level 0")
        runner = self._levels[0]
        role = self._roles.get(part.name)
        if role is None or part.name not in self.placement.joins:
            raise PlanError(
                f"view {part.name!r} is not joined at {self.node!r}; it joins {', '.join(self.placement.joins)}"
            )
        if role not in self._attendance.brings(child):
            raise PlanError(f"view {part.name!r} does not come over {child!r}")
        if LOGITS not in part.outputs:
            raise PlanError(f"view {part.name!r}: no output named {LOGITS!r}")
        logits_BK = decode_rows(part.outputs[LOGITS], runner.logits_spec)
        feature_B = None
        if part.feature is not None and runner.feature_spec is not None:
            feature_B = decode_rows(part.feature, runner.feature_spec)
        return logits_BK, feature_B, role

    def _take(self, row: PartRow, sample: SampleId, level: int, name: str, deadline_ns: int, num_views: int) -> None:
        if name != "*" and self.plan.join.by != "none" and self._attendance.arrived(name, sample):
            for waiting in [x for x in self._open.values() if x.state is State.JOIN]:
                self._join_if_complete(waiting)
        answered = self._answered.get(sample)
        if answered is not None:
            self.counts["late"] += 1
            self._replier.again(sample, row, answered)
            return
        journey = self._open.get(sample)
        if journey is None:
            if len(self._open) >= MAX_OPEN:
                error = AdmissionRefused(f"{self.node!r} has {MAX_OPEN} samples in flight")
                self._refuse(row.owner, m.Part(level, row.name, (sample,), 0, (0.0,), {}), error)
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

    def _decide_parts(self, batch: list[Journey]) -> None:
        """Level 0's exit, if it has one, for samples whose views are complete."""
        if not batch:
            return
        started_ns = self._clock.now_ns()
        runner = self._levels[0]
        if not runner.has_exit:
            for journey in batch:
                journey.waited(j.QUEUE, started_ns)
            self._need_features(batch)
            return
        rows = [[x.parts[name].logits_K if name in x.parts else None for x in batch] for name in runner.parts]
        logits_NBK, present_NB = stack(rows, runner.logits_spec)
        outputs = runner.fuse_outputs(logits_NBK, present_NB)
        fused_ns = self._clock.now_ns()
        for journey in batch:
            journey.waited(j.QUEUE, started_ns)
            journey.spend(j.AGGREGATE, fused_ns - started_ns)
        hard: list[Journey] = []
        self._settle(batch, 0, outputs, fused_ns, hard.extend)
        if self._mode is not None and self._mode.decided(len(batch), len(hard)):
            for child in self._attendance.children():
                self._port.to_child(child, m.Mode(0, self._mode.eager))
        if hard:
            self._need_features(hard)

    def _settle(
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

    # --- features ---------------------------------------------------------------------------------------------

    def _need_features(self, batch: list[Journey]) -> None:
        """Ask the children for features that did not come with the outputs."""
        if self._levels[0].feature_spec is None:
            for journey in batch:
                self._answer(journey, "")
            return
        pulls: dict[tuple[str, str], list[SampleId]] = defaultdict(list)
        for journey in batch:
            if not self._climb.can(journey, 1):
                continue
            journey.state = State.PULL
            for name, part in journey.parts.items():
                if part.feature is None:
                    journey.awaited.add(name)
                    pulls[part.owner, part.name].append(journey.id)
        for (child, name), ids in pulls.items():
            if not self._port.to_child(child, m.Pull(0, name, ids)):
                for sample in ids:
                    self._features_settled(self._open[sample], {self._roles[name]})
        for journey in batch:
            if journey.state is State.PULL and not journey.awaited:
                self._climb.enqueue(journey)

    def _features_settled(self, journey: Journey, names: Iterable[str]) -> None:
        journey.awaited.difference_update(names)
        if journey.state is State.PULL and not journey.awaited:
            journey.waited(j.PULL, self._clock.now_ns())
            self._climb.enqueue(journey)

    # --- answering --------------------------------------------------------------------------------------------

    def _answer(self, journey: Journey, degraded: str) -> None:
        journey.state = State.DONE
        del self._open[journey.id]
        reason = degraded or ("views" if journey.is_short else "")
        if reason:
            count_degraded(self.counts, reason)
        if not journey.outputs and "*" in journey.parts:
            # A fused part carries no outputs: the junction that sent it holds the best answer so far.
            part = journey.parts["*"]
            self._port.to_child(part.owner, m.Refused(journey.level, part.name, (journey.id,), "timeout", reason))
            return
        answered = Answered(journey.exit or NO_EXIT, journey.outputs, journey.num_views, reason)
        self._remember(journey.id, answered)
        self.counts[f"exit:{answered.exit}"] += 1
        self._replier.answer(journey, answered)

    def _remember(self, sample: SampleId, answered: Answered) -> None:
        """For duplicates and late views."""
        self._answered[sample] = answered
        if len(self._answered) > MAX_ANSWERED:
            self._answered.popitem(last=False)

    def _give_up(self, journey: Journey, reason: str) -> None:
        """The best exit so far answers."""
        now_ns = self._clock.now_ns()
        if journey.state is State.JOIN:
            journey.joined_ns = journey.mark_ns = now_ns
            journey.num_views = len(journey.parts)
        else:
            journey.waited(_WAITS[journey.state], now_ns)
        runner = self._levels[0]
        if not journey.outputs and "*" not in journey.parts and runner.has_exit:
            rows = [[journey.parts[n].logits_K if n in journey.parts else None] for n in runner.parts]
            outputs = runner.fuse_outputs(*stack(rows, runner.logits_spec))
            journey.exit, journey.outputs = runner.exit_name, {name: values[0] for name, values in outputs.items()}
        self._answer(journey, reason)

    def _refuse(self, child: str, part: m.Part, error: TierlineError) -> None:
        self.counts["refused"] += len(part.ids)
        self._port.to_child(child, m.Refused(part.level, part.name, part.ids, error.code, str(error)))
