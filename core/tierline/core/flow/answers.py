"""What leaves a junction: one answer per sample, remembered for a while for its duplicates and late views."""

from __future__ import annotations

from tierline.core.errors import TierlineError
from tierline.core.flow import journey as j
from tierline.core.flow.journey import Answered, Journey, PartRow, State, count_degraded
from tierline.core.flow.levels import NO_EXIT, stack
from tierline.core.flow.port import Site
from tierline.core.flow.reply import Replier
from tierline.core.link import messages as m
from tierline.core.types import SampleId

MAX_ANSWERED = 4096
"""Verdicts remembered for duplicates and late views."""
_WAITS = {State.PULL: j.PULL, State.RUN: j.QUEUE, State.UP: j.SEND}


class Answers:
    """Ends samples of `open_`, the samples in flight, which it takes out as it answers them."""

    def __init__(self, site: Site, open_: dict[SampleId, Journey]) -> None:
        self._levels, self._port, self._clock, self._open = site.levels, site.port, site.clock, open_
        self._counts, self._given = site.memory.counts, site.memory.answered
        self._replier = Replier(site)

    def use(self, plan: int) -> None:
        """Verdicts name this version from now on."""
        self._replier.plan = plan

    def __contains__(self, sample: SampleId) -> bool:
        return sample in self._given

    def again(self, sample: SampleId, row: PartRow) -> bool:
        """Give a duplicate or late view the answer that was given; False where none is remembered."""
        answered = self._given.get(sample)
        if answered is None:
            return False
        self._counts["late"] += 1
        self._replier.again(sample, row, answered)
        return True

    def remember(self, sample: SampleId, answered: Answered) -> None:
        """For duplicates and late views."""
        self._given[sample] = answered
        if len(self._given) > MAX_ANSWERED:
            self._given.popitem(last=False)

    def answer(self, journey: Journey, degraded: str) -> None:
        """End a sample with its best exit so far, degraded unless the reason is empty."""
        journey.state = State.DONE
        del self._open[journey.id]
        reason = degraded or ("views" if journey.is_short else "")
        if reason:
            count_degraded(self._counts, reason)
        if not journey.outputs and "*" in journey.parts:
            # A fused part carries no outputs: the junction that sent it holds the best answer so far.
            part = journey.parts["*"]
            self._port.to_child(part.owner, m.Refused(journey.level, part.name, (journey.id,), "timeout", reason))
            return
        answered = Answered(journey.exit or NO_EXIT, journey.outputs, journey.num_views, reason)
        self.remember(journey.id, answered)
        self._counts[f"exit:{answered.exit}"] += 1
        self._replier.answer(journey, answered)

    def give_up(self, journey: Journey, reason: str) -> None:
        """Nothing more is waited for: the best exit so far answers, were it of the views that came."""
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
        self.answer(journey, reason)

    def refuse(self, child: str, part: m.Part, error: TierlineError) -> None:
        """Tell a child that its part has no place here, and why."""
        self._counts["refused"] += len(part.ids)
        self._port.to_child(child, m.Refused(part.level, part.name, part.ids, error.code, str(error)))

    def flush(self) -> None:
        """Send what was answered since the last time."""
        self._replier.flush()
