"""The short way: fused rows that need no join, no pull and no thread are answered while their message is taken in.

What arrives fused at the node of the last Section waits for nothing: unless that Section is busy or slow, the rows of
a message run as they came, and leave as one Verdict. The long way (a Journey per row, see `junction`) does the same at
two to three times the cost; it is there for rows that have to wait.
"""

from __future__ import annotations

from collections.abc import Callable

from tierline.core.flow.climb import Climb
from tierline.core.flow.coding import encode_outputs
from tierline.core.flow.journey import DECODE, NUM_SPANS, QUEUE, REPLY, SECTION, Answered
from tierline.core.flow.levels import LOGITS
from tierline.core.flow.port import Site
from tierline.core.link import messages as m
from tierline.core.plan import Plan
from tierline.core.types import Array, SampleId


class ShortWay:
    """Answers a whole Part at once, or leaves it to the long way."""

    plan: Plan

    def __init__(
        self,
        site: Site,
        climb: Climb,
        *,
        is_known: Callable[[SampleId], bool],
        remember: Callable[[SampleId, Answered], None],
    ) -> None:
        """`is_known` tells of samples that are in flight or were answered; `remember` takes new answers."""
        self._node, self._tier, self._runs = site.node, site.placement.tier.value, site.placement.runs
        self._levels, self._port, self._clock, self._counts = site.levels, site.port, site.clock, site.memory.counts
        self._climb = climb
        self._is_known, self._remember = is_known, remember

    def take(self, child: str, part: m.Part, feature_B: Array, arrived_ns: int, decode_ns: int) -> bool:
        """Answer the rows of a fused Part. False where nothing was done, since they have to go the long way."""
        ids, level = part.ids, part.level + 1
        num_rows = len(ids)
        if level != self._levels.root_level or level not in self._runs or not self._climb.is_free(part.level):
            return False
        if not 0 < num_rows <= self.plan.max_batch or (num_rows > 1 and len(set(ids)) < num_rows):
            return False
        started_ns = self._clock.now_ns()
        if arrived_ns + int(min(part.budget_ms) * 1e6) <= started_ns or any(map(self._is_known, ids)):
            return False
        ran = self._port.run_now(level, "*", feature_B)
        if ran is None or not ran[0]:
            return False
        (sections, engine_ns), runner = ran, self._levels[level]
        outputs = runner.own_outputs(sections[LOGITS])
        coded = {name: encode_outputs(rows_B) for name, rows_B in outputs.items()}
        spans = [0] * NUM_SPANS
        now_ns = self._clock.now_ns()
        spans[DECODE], spans[SECTION] = decode_ns, engine_ns
        spans[QUEUE] = started_ns - arrived_ns - decode_ns
        spans[REPLY] = now_ns - started_ns - engine_ns
        residence_ns, exits = now_ns - arrived_ns, [runner.exit_name] * num_rows
        hop = m.HopTimes(self._node, self._tier, [(residence_ns, *spans)] * num_rows)
        verdict = m.Verdict(part.name, ids, exits, coded, part.num_views, [""] * num_rows, [hop], self.plan.version)
        self._port.to_child(child, verdict)
        # The answer has left: the rest is not on anybody's way.
        counts = self._counts
        counts["batches"] += 1
        counts["batched"] += num_rows
        counts[f"exit:{runner.exit_name}"] += num_rows
        for row, sample in enumerate(ids):
            rows = {name: rows_B[row] for name, rows_B in outputs.items()}
            self._remember(sample, Answered(runner.exit_name, rows, part.num_views[row], ""))
            self._port.answered(runner.exit_name, residence_ns, spans[QUEUE])
        return True
