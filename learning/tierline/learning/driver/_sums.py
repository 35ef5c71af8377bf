"""The sums of a run, as one meeting point would add them up: whoever comes first, the bits are the same."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from tierline.core.types import NodeId
from tierline.learning.driver._arrivals import Arrivals
from tierline.learning.driver._peer import Step
from tierline.learning.driver._time import Pipe, Schedule
from tierline.learning.driver.world import ROOT, Counts
from tierline.learning.effects import Reduce, Reduced
from tierline.learning.errors import RuleError
from tierline.learning.fixed import WeightedSum, contribution

LOG = logging.getLogger("tierline.learning")


@dataclass(slots=True, eq=False)
class Sum:
    """One sum under way. `waiting` are those who asked for it and have not been answered."""

    first: Reduce
    """What the first to take part asked; all must agree with it."""
    asked: Reduce | None = None
    """What the first of those who want the sum asked: they say when it closes."""
    total: WeightedSum | None = None
    within_ns: int | None = None
    """After the first contribution it closes."""
    since_ns: int = 0
    """When the first contribution arrived."""
    members: set[NodeId] = field(default_factory=set)
    waiting: set[NodeId] = field(default_factory=set)
    closed: bool = False
    holds: bool = False
    """Contributions wait until it is known who takes part."""
    held: list[tuple[NodeId, WeightedSum]] = field(default_factory=list)
    decided: frozenset[NodeId] | None = None
    """Who takes part, where that was decided before; nobody: it never closed."""

    @property
    def place(self) -> NodeId:
        """Where it is added up: with the only one who wants it, else at a meeting point."""
        return next(iter(self.first.to)) if len(self.first.to) == 1 else ROOT

    def add(self, member: NodeId, part: WeightedSum, now_ns: int) -> bool:
        """The first contribution of each member counts, until the sum closes; False: this one came too late."""
        if self.holds:
            self.held.append((member, part))
            return True
        if member in self.members:
            return True
        if not self.closed and (self.decided is None or member in self.decided):
            self.since_ns = self.since_ns if self.members else now_ns
            self.members.add(member)
            self.total = part if self.total is None else self.total + part
            return True
        return False

    def decide(self, decided: frozenset[NodeId] | None, now_ns: int) -> None:
        """Go on with what was held; `decided` is None where time decides nothing."""
        self.holds, self.decided = False, decided
        for member, part in self.held:
            self.add(member, part, now_ns)
        self.held.clear()

    def close_if_full(self) -> None:
        if self.decided is not None:
            self.closed = bool(self.decided) and self.members >= self.decided
        elif not self.holds and self.asked is not None and len(self.members) >= _quorum(self.asked):
            self.closed = True

    def result(self) -> Reduced:
        assert self.total is not None
        self.total.integers.flags.writeable = False  # all members of this process share it
        return Reduced(self.first.value.layout, self.total, tuple(sorted(self.members)))


class Sums:
    """All sums of a run. `deliver(member, step, tag, result)` is called when a result has travelled down."""

    def __init__(
        self,
        num_nodes: int,
        schedule: Schedule,
        pipe: Callable[[NodeId, NodeId], Pipe],
        deliver: Callable[[NodeId, Step, str, Reduced], None],
        counts: Counts,
        *,
        is_replay: bool,
    ) -> None:
        self._num_nodes = num_nodes
        self._schedule, self._pipe, self._deliver = schedule, pipe, deliver
        self._is_replay, self._counts = is_replay, counts
        self._arrivals = Arrivals()
        self._sums: dict[Step, dict[str, Sum]] = {}
        self._num_finished: dict[Step, int] = {}

    def join(
        self,
        me: NodeId,
        step: Step,
        e: Reduce,
        where: str,
        *,
        decides: bool = False,
        decided: frozenset[NodeId] | None = None,
    ) -> tuple[Sum, int]:
        """Send one contribution up, or ask for the sum, or both; returns the sum and the bytes sent. In a replay the
        node that adds up `decides` who takes part. Raises RuleError where those who take part disagree, BadFrame for a
        value that cannot be added."""
        if not 1 <= _quorum(e) <= len(e.group):
            raise RuleError(f"{where}: a quorum of {e.quorum} out of {len(e.group)} members")
        shared = self._sums.setdefault(step, {}).setdefault(e.tag, Sum(e, holds=self._is_replay))
        if _terms(shared.first) != _terms(e):
            raise RuleError(f"{where}: members differ in group, receivers, layout or fraction_bits")
        if me in e.to:
            if shared.asked is None:
                shared.asked, shared.within_ns = e, self._arrivals.within_ns(e.tag, e.within_s)
            if (shared.asked.quorum, shared.asked.within_s) != (e.quorum, e.within_s):
                raise RuleError(f"{where}: those who want the sum differ in quorum or deadline")
        part: WeightedSum | None = None
        if me in e.group:
            part = contribution(
                e.value, weight=e.weight, num_members=len(e.group), fraction_bits=e.fraction_bits, where=where
            )
        num_bytes = part.integers.nbytes + 8 if part else 0

        def arrive() -> None:
            now_ns = self._schedule.now_ns
            if part is not None:
                if not shared.add(me, part, now_ns):
                    self._counts.num_late += 1
                    LOG.info("%s: its part of sum %r of %s %d came too late: dropped", me, e.tag, *step)
                self._arrivals.came((step, e.tag), me, now_ns)
            if me in e.to:
                shared.waiting.add(me)
            if decides:
                shared.decide(decided, now_ns)
            if shared.asked is not None and shared.members:
                self._arrivals.opened((step, e.tag), shared.asked.within_s, shared.since_ns, sorted(shared.members))
            shared.close_if_full()
            self._settle(shared, step)
            if shared.members and shared.within_ns is not None and not shared.closed and not self._is_replay:
                self._schedule.at(max(now_ns, shared.since_ns + shared.within_ns), time_over)

        def time_over() -> None:
            shared.closed = True
            self._settle(shared, step)

        self._schedule.at(self._arrival_ns(me, shared.place, num_bytes), arrive)
        return shared, num_bytes

    def finished(self, step: Step) -> None:
        """A node has finished `step`; once all have, its sums are forgotten."""
        count = self._num_finished[step] = self._num_finished.get(step, 0) + 1
        if count == self._num_nodes:
            self._sums.pop(step, None)
            del self._num_finished[step]

    def _settle(self, shared: Sum, step: Step) -> None:
        """Send a closed sum to those who wait for it."""
        if not shared.closed:
            return
        result = shared.result()
        num_bytes = result.integers.nbytes + 8
        for member in sorted(shared.waiting):
            self._send_down(shared, member, step, result, num_bytes)
        shared.waiting.clear()

    def _send_down(self, shared: Sum, member: NodeId, step: Step, result: Reduced, num_bytes: int) -> None:
        arrival_ns = self._arrival_ns(shared.place, member, num_bytes)
        self._schedule.at(arrival_ns, lambda: self._deliver(member, step, shared.first.tag, result))

    def _arrival_ns(self, source: NodeId, target: NodeId, num_bytes: int) -> int:
        now_ns = self._schedule.now_ns
        return now_ns if source == target else self._pipe(source, target).arrival_ns(now_ns, num_bytes)


def _quorum(e: Reduce) -> int:
    return len(e.group) if e.quorum is None else e.quorum


def _terms(e: Reduce) -> tuple[object, ...]:
    return (e.group, e.to, e.value.layout, e.fraction_bits)
