"""Which views a junction waits for: those of children that are connected, and, at first, of children still to come."""

from __future__ import annotations

from collections.abc import Iterable, KeysView

from tierline.core.plan import Placement, Plan
from tierline.core.types import SampleId

MAX_LAG = 1024
"""A view that is so many samples behind the others (its device restarted from the first) is not waited for."""
STARTUP_GRACE_NS = 5_000_000_000
"""A hierarchy that starts together is waited for this long, so that its first samples have all their views."""


class Attendance:
    """Views by the child that brings them; our own under the empty name."""

    def __init__(self, node: str, placement: Placement, started_ns: int) -> None:
        self._node, self._placement = node, placement
        self.grace_ends_ns = started_ns + STARTUP_GRACE_NS
        self._present: dict[str, set[str]] = {"": set(placement.views.values())}
        self._children: dict[str, set[str]] = {}
        self._to_come: dict[str, set[str]] = {}
        self._latest: dict[str, SampleId] = {}
        """By view. Its samples come in order, so nobody waits for it at a sample that it has passed."""
        self._is_ordered = True
        """Until a view goes back, as programs that number their own samples may."""

    def use(self, plan: Plan) -> None:
        """Learn from the Plan which children bring views."""
        if not self._placement.joins:
            return
        self._children = {child: views for child in plan.nodes if (views := _views_through(plan, self._node, child))}
        self._to_come = {child: views for child, views in self._children.items() if child not in self._present}

    def ignore(self, views: set[str]) -> None:
        """Own views that no source brings."""
        self._present[""] -= views

    def up(self, child: str) -> None:
        self._to_come.pop(child, None)
        if self._placement.joins:
            self._present[child] = self._children.get(child, set())

    def down(self, child: str) -> None:
        self._present.pop(child, None)
        for view in self.brings(child):
            self._latest.pop(view, None)

    def children(self) -> list[str]:
        """Children that are connected."""
        return [child for child in self._present if child]

    def brings(self, child: str) -> set[str]:
        """The Bundle's views that the Plan lets come over this child."""
        return self._children.get(child, set())

    def latest(self) -> Iterable[SampleId]:
        """The last sample of every view."""
        return self._latest.values()

    def arrived(self, view: str, sample: SampleId) -> bool:
        """Note a view's sample; whether it skipped some, where others may be waiting for it."""
        latest = self._latest.get(view)
        self._latest[view] = sample
        if latest is None or (latest.origin, latest.epoch) != (sample.origin, sample.epoch):
            return True
        self._is_ordered = self._is_ordered and sample.seq >= latest.seq
        return sample.seq > latest.seq + 1

    def is_complete(self, sample: SampleId, parts: KeysView[str], now_ns: int) -> bool:
        """Whether nobody is left to wait for."""
        for views in self._present.values():
            if not views <= parts and not all(self._is_elsewhere(view, sample) for view in views - parts):
                return False
        return not self.still_waits(parts, now_ns)

    def _is_elsewhere(self, view: str, sample: SampleId) -> bool:
        """Whether a view has passed this sample, or is so far behind that it will not come in time."""
        latest = self._latest.get(view)
        if latest is None or (latest.origin, latest.epoch) != (sample.origin, sample.epoch):
            return False
        return sample.seq - latest.seq > MAX_LAG or (self._is_ordered and latest.seq > sample.seq)

    def still_waits(self, parts: KeysView[str], now_ns: int) -> bool:
        """Whether a child that has never connected may still bring what is missing."""
        if self._to_come and now_ns >= self.grace_ends_ns:
            self._to_come.clear()
        return any(not views <= parts for views in self._to_come.values())


def _views_through(plan: Plan, node: str, child: str) -> set[str]:
    """The Bundle's views that reach `node` over its direct child."""
    if plan.nodes[child].parent != node:
        return set()
    below = [child]
    for name in below:
        below.extend(other for other, placement in plan.nodes.items() if placement.parent == name)
    return {role for name in below for role in plan.nodes[name].views.values()}
