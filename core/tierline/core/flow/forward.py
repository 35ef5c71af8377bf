"""A device that does not join: sends its exit's outputs up, holds features for a Pull, hands answers to its sinks.

Without a parent, or when time runs out, its own exit answers, marked degraded. No I/O; time is injected.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from dataclasses import dataclass

import numpy as np

from tierline.core.errors import AdmissionRefused, TierlineError
from tierline.core.flow import journey as j
from tierline.core.flow.above import Above, budgets_ms
from tierline.core.flow.coding import decode_outputs, encode_feature, encode_outputs
from tierline.core.flow.journey import NUM_SPANS, Answered, PartRow, count_degraded, is_beyond
from tierline.core.flow.levels import LOGITS, stack
from tierline.core.flow.port import Site
from tierline.core.flow.reply import make_outcome
from tierline.core.flow.timers import Timers
from tierline.core.link import messages as m
from tierline.core.plan import Plan
from tierline.core.types import Payload, SampleId

MAX_HELD = 4096
"""Samples whose features are held at once; the oldest are let go first and answered alone."""

MAX_GATHER_NS = 50_000_000
"""So long rows wait for a parent that is behind."""


@dataclass(slots=True)
class Held:
    """One view of one sample, waiting for its verdict."""

    row: PartRow
    deadline_ns: int
    spans_ns: list[int]
    posted_ns: int = 0
    """0 until its outputs were sent."""


class Forwarder:
    """The state machine of a device below a junction."""

    def __init__(self, site: Site, plan: Plan) -> None:
        self.node, self.placement, self.counts = site.node, site.placement, site.memory.counts
        self._levels, self._port, self._clock = site.levels, site.port, site.clock
        self._held: OrderedDict[tuple[str, SampleId], Held] = OrderedDict()
        self._timers = Timers(self._held)
        self._unsent: dict[str, list[SampleId]] = defaultdict(list)
        self._sent_ns = 0
        self._above = Above()
        self._result_spec = self._levels[self._levels.root_level].logits_spec
        self.use(plan)

    def use(self, plan: Plan) -> None:
        """Take over a Plan's knobs."""
        self.plan = plan
        self.eager = plan.mode == "eager"

    def local(self, view: str, sample: SampleId, row: PartRow, deadline_ns: int) -> None:
        """A view that was captured and ran through its Section. Raises AdmissionRefused."""
        if (view, sample) in self._held:
            raise AdmissionRefused(f"view {view!r} of sample {sample} is in flight already")
        spans = list(row.own_ns) or [0] * NUM_SPANS
        self._held[view, sample] = Held(row, deadline_ns, spans)
        self._timers.add(deadline_ns, (view, sample), "deadline")
        self._unsent[view].append(sample)
        if len(self._held) > MAX_HELD:
            oldest = next(iter(self._held))
            self._alone(*oldest, "overrun")

    def pump(self) -> None:
        """Send what was captured, all rows of a view in one message.

        A message costs the parent more than its rows do. While it is behind, rows gather here until it has answered;
        but not for long, since it may be waiting for just these: another view of the same sample.
        """
        if self._port.parent_is_congested() and self._clock.now_ns() < self._sent_ns + MAX_GATHER_NS:
            return
        for view in [view for view, samples in self._unsent.items() if samples]:
            samples, self._unsent[view] = self._unsent[view], []
            self._send(view, [s for s in samples if (view, s) in self._held])

    def _send(self, view: str, samples: list[SampleId]) -> None:
        started_ns = self._clock.now_ns()
        late = [s for s in samples if self._above.is_too_late(started_ns, self._held[view, s].deadline_ns)]
        for sample in late:
            self._alone(view, sample, "deadline")
        samples = [sample for sample in samples if sample not in late] if late else samples
        if not samples:
            return
        held = [self._held[view, sample] for sample in samples]
        logits = np.stack([x.row.logits_K for x in held if x.row.logits_K is not None])
        part = m.Part(
            level=0,
            name=view,
            ids=samples,
            plan=self.plan.version,
            budget_ms=budgets_ms([x.deadline_ns for x in held], started_ns, self._port.parent_rtt_ns()),
            outputs={LOGITS: encode_outputs(logits)},
            feature=self._feature(held) if self.eager else None,
        )
        sent = self._port.to_parent(part)
        self._sent_ns = now_ns = self._clock.now_ns()
        for sample, x in zip(samples, held, strict=True):
            x.spans_ns[j.QUEUE] += max(0, started_ns - x.row.arrived_ns - sum(x.row.own_ns))
            x.spans_ns[j.ENCODE] += now_ns - started_ns
            x.posted_ns = now_ns
            if not sent:
                self._alone(view, sample, "no_parent")

    def _feature(self, held: list[Held]) -> Payload | None:
        rows = [x.row.feature for x in held if x.row.feature is not None]
        return encode_feature(self.plan.codec(self.node, 0), np.stack(rows), self.node) if rows else None

    def pull(self, pull: m.Pull) -> None:
        """The parent wants features."""
        found = [(sample, self._held.get((pull.name, sample))) for sample in pull.ids]
        held = [(sample, x) for sample, x in found if x is not None and x.row.feature is not None]
        features = m.Features(
            level=0,
            name=pull.name,
            ids=[sample for sample, _ in held],
            feature=self._feature([x for _, x in held]),
            gone=[sample for sample, x in found if x is None or x.row.feature is None],
        )
        self.counts["pulled"] += len(held)
        self._port.to_parent(features)

    def verdict(self, verdict: m.Verdict, arrived_ns: int) -> None:
        """Answers of the parent."""
        try:
            outputs = decode_outputs(verdict, self._result_spec)
        except TierlineError:
            for sample in verdict.ids:
                if (verdict.name, sample) in self._held:
                    self._alone(verdict.name, sample, "bad_verdict")
            return
        now_ns = self._clock.now_ns()
        for row, sample in enumerate(verdict.ids):
            x = self._held.pop((verdict.name, sample), None)
            if x is None:
                self.counts["late"] += 1
                continue
            above = tuple((hop.node, hop.tier, tuple(hop.rows_ns[row])) for hop in verdict.hops)
            self._above.took(arrived_ns - x.posted_ns)
            x.spans_ns[j.SEND] += max(0, arrived_ns - x.posted_ns - (above[0][2][0] if above else 0))
            x.spans_ns[j.DECODE] += now_ns - arrived_ns
            answered = Answered(
                verdict.exits[row],
                {name: rows[row] for name, rows in outputs.items()},
                verdict.num_views[row],
                verdict.degraded[row],
            )
            self._finish(sample, x, answered, above, now_ns)

    def refused(self, refused: m.Refused) -> None:
        """The parent cannot use these rows."""
        self.counts["refused"] += len(refused.ids)
        for sample in refused.ids:
            if (refused.name, sample) in self._held:
                self._alone(refused.name, sample, f"refused: {refused.message}")

    def mode(self, mode: m.Mode) -> None:
        self.eager = mode.eager

    def parent_down(self) -> None:
        """The parent was lost: everything that waits is answered here."""
        self._all_alone("no_parent")

    def stop(self) -> None:
        """The node ends, or takes another Plan."""
        self._all_alone("stopped")

    def _all_alone(self, reason: str) -> None:
        for view, sample in list(self._held):
            self._alone(view, sample, reason)

    def next_deadline_ns(self) -> int | None:
        if any(self._unsent.values()):
            gathered_ns = self._sent_ns + MAX_GATHER_NS
            return min(gathered_ns, self._timers.next_ns or gathered_ns)
        return self._timers.next_ns

    def expire(self, now_ns: int) -> None:
        for key, kind in self._timers.due(now_ns):
            x = self._held.get(key)
            if x is not None and x.deadline_ns <= now_ns:
                if x.posted_ns:
                    self._above.took(now_ns - x.posted_ns)
                self._alone(*key, kind)

    @property
    def num_open(self) -> int:
        return len(self._held)

    @property
    def versions(self) -> set[int]:
        """Of the Plan: rows made under these fit here. A device has no children that send any."""
        return {self.plan.version}

    def holds(self, sample: SampleId) -> bool:
        """Whether a view of this sample is in flight here."""
        return any((view, sample) in self._held for view in self.placement.views)

    def can_run_again(self) -> bool:
        """Whether everything in flight still has what was captured."""
        return all(x.row.image is not None for x in self._held.values())

    def withdraw(self, first: SampleId) -> list[tuple[SampleId, Held]]:
        """Take out what is to be made under another Plan: ids like `first`, from its number on, in order."""
        found = [key for key, x in self._held.items() if is_beyond(key[1], first) and x.row.image is not None]
        return [(key[1], self._held.pop(key)) for key in sorted(found, key=lambda key: key[1].seq)]

    def failed(self, sample: SampleId, held: Held) -> None:
        """What was withdrawn could not be run: this Plan's own exit answers after all."""
        self._held[held.row.name, sample] = held
        self._alone(held.row.name, sample, "engine")

    def _alone(self, view: str, sample: SampleId, reason: str) -> None:
        """Answer by this node's own exit."""
        x = self._held.pop((view, sample))
        now_ns = self._clock.now_ns()
        if x.posted_ns:
            x.spans_ns[j.SEND] += now_ns - x.posted_ns
        runner = self._levels[0]
        role = self.placement.views[view]
        rows = [[x.row.logits_K if name == role else None] for name in runner.parts]
        outputs = runner.fuse_outputs(*stack(rows, runner.logits_spec))
        answered = Answered(runner.exit_name, {name: values[0] for name, values in outputs.items()}, 1, reason)
        count_degraded(self.counts, reason)
        self._finish(sample, x, answered, (), now_ns)

    def _finish(
        self,
        sample: SampleId,
        x: Held,
        answered: Answered,
        above: tuple[tuple[str, str, tuple[int, ...]], ...],
        started_ns: int,
    ) -> None:
        now_ns = self._clock.now_ns()
        x.spans_ns[j.REPLY] += now_ns - started_ns
        own = (self.node, self.placement.tier.value, (now_ns - x.row.arrived_ns, *x.spans_ns))
        self.counts[f"exit:{answered.exit}"] += 1
        self._port.answered(answered.exit, own[2][0], x.spans_ns[j.QUEUE])
        self._port.outcome(
            make_outcome(sample, x.row.name, x.row.truth, answered, (own, *above), self.plan.version, self._levels.task)
        )
