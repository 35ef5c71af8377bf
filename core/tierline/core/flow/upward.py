"""The way up: what is escalated to the parent, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable

from tierline.core.errors import TierlineError
from tierline.core.flow import journey as j
from tierline.core.flow.above import Above, budgets_ms
from tierline.core.flow.coding import decode_outputs, encode_fused
from tierline.core.flow.journey import Journey, State
from tierline.core.flow.port import Site
from tierline.core.link import messages as m
from tierline.core.plan import Plan
from tierline.core.types import Array, SampleId


class Upward:
    """Samples of `open_` that the parent owes a verdict."""

    plan: Plan

    def __init__(self, site: Site, open_: dict[SampleId, Journey], *, answer: Callable[[Journey, str], None]) -> None:
        """`answer(journey, reason)` ends a sample with its best exit so far, degraded unless the reason is empty."""
        self._node, self._levels, self._port, self._clock = site.node, site.levels, site.port, site.clock
        self._counts, self._open, self._answer = site.memory.counts, open_, answer
        self._above = Above()

    def why_not(self, journey: Journey) -> str:
        """Why this sample cannot be answered above; empty where it can."""
        if not self._port.parent_is_up():
            return "no_parent"
        now_ns = self._clock.now_ns()
        is_late = now_ns + self._port.parent_rtt_ns() > journey.deadline_ns
        return "deadline" if is_late or self._above.is_too_late(now_ns, journey.deadline_ns) else ""

    def escalate(self, batch: list[Journey], level: int, feature_B: Array) -> None:
        """Send fused features to the parent; from now on the samples wait for its verdict."""
        started_ns = self._clock.now_ns()
        payload = encode_fused(self.plan.codec(self._node, level), feature_B, self._node)
        now_ns = self._clock.now_ns()
        part = m.Part(
            level=level,
            name=self._node,
            ids=[x.id for x in batch],
            plan=self.plan.version,
            budget_ms=budgets_ms([x.deadline_ns for x in batch], now_ns, self._port.parent_rtt_ns()),
            outputs={},
            feature=payload,
            fused=True,
            num_views=[x.num_views for x in batch],
        )
        sent = self._port.to_parent(part)
        for journey in batch:
            journey.spend(j.ENCODE, now_ns - started_ns)
            journey.mark_ns = now_ns
            journey.state = State.UP
            journey.feature = None
            if not sent:
                self._answer(journey, "no_parent")

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
                self._counts["late"] += 1
                continue
            above = tuple(m.HopTimes(hop.node, hop.tier, (hop.rows_ns[row],)) for hop in verdict.hops)
            residence_ns = above[0].rows_ns[0][0] if above else 0
            self._above.took(arrived_ns - journey.mark_ns)
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

    def lost(self) -> None:
        """The parent was lost: what waits for it is answered by the best exit so far."""
        for sample in list(self._open):
            self._answer_waiting(sample, "no_parent")

    def _answer_waiting(self, sample: SampleId, reason: str) -> None:
        """The parent will not answer this sample, if it is one that waits for it."""
        journey = self._open.get(sample)
        if journey is not None and journey.state is State.UP:
            journey.waited(j.SEND, self._clock.now_ns())
            self._answer(journey, reason)

    def in_vain(self, journey: Journey, now_ns: int) -> None:
        """Its time is up, and no verdict has come."""
        self._above.took(now_ns - journey.mark_ns)
