"""Groups answers into verdicts for children and outcomes for this node's own views."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tierline.core.flow.coding import encode_outputs
from tierline.core.flow.journey import NUM_SPANS, QUEUE, REPLY, Answered, Journey, PartRow
from tierline.core.flow.port import Site
from tierline.core.link import messages as m
from tierline.core.protocols import Outcome, Task
from tierline.core.telemetry.ledger import Hop
from tierline.core.types import NO_ANSWER, SampleId, Truth


@dataclass(slots=True)
class _Row:
    id: SampleId
    answered: Answered
    hops: tuple[tuple[str, str, tuple[int, ...]], ...]
    """(node, tier, (residence, *spans)) from this node upwards."""


class Replier:
    """Collects what is answered within one pump, then sends one Verdict per child, view and shape of ledger."""

    def __init__(self, site: Site) -> None:
        self.plan = 0
        self._node, self._tier, self._task = site.node, site.placement.tier.value, site.levels.task
        self._port, self._clock = site.port, site.clock
        self._rows: dict[tuple[str, str, tuple[str, ...], tuple[str, ...]], list[_Row]] = {}

    def answer(self, journey: Journey, answered: Answered) -> None:
        """Every part of the sample hears of it."""
        now_ns = self._clock.now_ns()
        journey.spend(REPLY, now_ns - journey.mark_ns)
        above = tuple([(hop.node, hop.tier, tuple(hop.rows_ns[0])) for hop in journey.above])
        for part in journey.parts.values():
            times = journey.hop_row(part, now_ns)
            self._port.answered(answered.exit, times[0], times[1 + QUEUE])
            own = (self._node, self._tier, times)
            self._add(part, _Row(journey.id, answered, (own,) if part.is_late else (own, *above)))

    def again(self, sample: SampleId, part: PartRow, answered: Answered) -> None:
        """A duplicate or late view gets the verdict that was given."""
        residence_ns = self._clock.now_ns() - part.arrived_ns
        hop = (self._node, self._tier, (residence_ns, *([0] * NUM_SPANS)))
        self._add(part, _Row(sample, answered, (hop,)))

    def flush(self) -> None:
        """Send what was collected."""
        if self._rows:
            groups, self._rows = self._rows, {}
            for (child, name, _, _), rows in groups.items():
                self._port.to_child(child, self._verdict(name, rows))

    def _add(self, part: PartRow, row: _Row) -> None:
        if part.owner:
            names, nodes = tuple(row.answered.outputs), tuple([hop[0] for hop in row.hops])
            self._rows.setdefault((part.owner, part.name, names, nodes), []).append(row)
        else:
            self._port.outcome(self._outcome(part, row))

    def _verdict(self, name: str, rows: list[_Row]) -> m.Verdict:
        outputs = {
            key: encode_outputs(
                row_0[np.newaxis] if len(rows) == 1 else np.stack([x.answered.outputs[key] for x in rows])
            )
            for key, row_0 in rows[0].answered.outputs.items()
        }
        return m.Verdict(
            name,
            [row.id for row in rows],
            [row.answered.exit for row in rows],
            outputs,
            [row.answered.num_views for row in rows],
            [row.answered.degraded for row in rows],
            [
                m.HopTimes(node, tier, [row.hops[i][2] for row in rows])
                for i, (node, tier, _) in enumerate(rows[0].hops)
            ],
            self.plan,
        )

    def _outcome(self, part: PartRow, row: _Row) -> Outcome:
        return make_outcome(row.id, part.name, part.truth, row.answered, row.hops, self.plan, self._task)


def make_outcome(
    sample: SampleId,
    view: str,
    truth: Truth | None,
    answered: Answered,
    hops: tuple[tuple[str, str, tuple[int, ...]], ...],
    plan: int,
    task: Task,
) -> Outcome:
    """What the origin of a view hands to its sinks."""
    outputs = {name: row[np.newaxis] for name, row in answered.outputs.items()}
    answer = task.decode(outputs)[0] if outputs else NO_ANSWER
    return Outcome(
        id=sample,
        view=view,
        answer=answer,
        exit=answered.exit,
        degraded=bool(answered.degraded),
        reason=answered.degraded,
        num_views=answered.num_views,
        plan=plan,
        ledger=tuple(Hop(node, tier, times[0], tuple(times[1:])) for node, tier, times in hops),
        truth=truth,
    )
