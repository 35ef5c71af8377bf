"""The Tuner: every choice of a space priced by the cost model, or shown to be no better than one that was.

Branch and bound. A block is a choice of cuts, exits and engines with all its vectors of thresholds. Its lower bound
gives every link the fastest encoding, the fastest decoding, the fewest bytes and the smallest loss of any codec there,
each from whichever codec has it. Latency, bytes, energy and loss grow with each of these, so no codec does better.
Where the front beats the bound at every vector, and none of them could become the chosen one, the block's codecs need
no pricing.

Shapes: G vectors of thresholds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from tierline.cloud.tuner.blocks import Block, Blocks, computed, crossed
from tierline.cloud.tuner.choice import Choice, Point, Predicted, Proposal
from tierline.cloud.tuner.cost import Coded, Cost, Figures
from tierline.cloud.tuner.effects import Effects
from tierline.cloud.tuner.goal import Goal
from tierline.cloud.tuner.ladder import Ladder, hosts_of
from tierline.cloud.tuner.measured import Measured, Run
from tierline.cloud.tuner.outcome import Best, Thresholds, Tried
from tierline.cloud.tuner.pareto import Front, NoFront
from tierline.cloud.tuner.space import Space, whole_space
from tierline.cloud.tuner.statistics import Statistics
from tierline.core.errors import PlanError
from tierline.core.plan import Hierarchy
from tierline.core.profile import Profile
from tierline.core.types import Array, Tier

AXES = ("latency_mean_ms", "bytes_per_sample", "quality_loss")
"""Figures of the front."""
Tokens = tuple[tuple[Tier, str], ...]
"""Codec by the tier below a link."""


def propose(
    ladder: Ladder,
    statistics: Statistics,
    profile: Profile,
    hierarchy: Hierarchy,
    goal: Goal,
    *,
    effects: Effects | None = None,
    space: Space | None = None,
    num_classes: int,
    handling_ms: Mapping[str, float] | None = None,
    window_ms: float = 0.0,
    bound: bool = True,
    with_front: bool = True,
    thresholds: Thresholds | None = None,
    look: Callable[[], None] = lambda: None,
) -> Proposal:
    """The front of a space and the choice that the goal asks for. A pure function.

    `num_classes` says how long an answer is, `handling_ms` by node what `handling` found in answers. Searches of the
    same space in several worlds may share `thresholds` of the same statistics and effects; without the front they are
    quicker. `look` is called now and then, and may raise to end it.

    Raises PlanError where nothing meets the goal, naming the nearest that can be met, and where nothing in the space
    was measured.
    """
    effects = effects or Effects()
    thresholds = thresholds or Thresholds(statistics, effects)
    search = _Search(ladder, thresholds, profile, hierarchy, goal, effects, num_classes, handling_ms or {})
    chosen_space = space or whole_space(ladder, hierarchy)
    best = search.run(chosen_space, bound, look, Front(len(AXES)) if with_front else NoFront(len(AXES)))
    chosen = search.point(best.chosen(goal, search.describe), window_ms)
    front = [search.point(tag, window_ms) for tag in best.front.tags]
    return Proposal(
        goal=goal,
        chosen=chosen,
        front=tuple(sorted(front, key=lambda point: point.predicted.latency_mean_ms)),
        exact=search.thresholds.is_complete,
        space=search.told(chosen_space),
        quality=statistics.quality(),
        num_choices=search.num_choices,
        num_priced=search.num_priced,
        profile=profile.digest(),
        bundle=profile.bundle,
        left_out=tuple(sorted(search.left_out())),
    )


Tag = tuple[Block, Tokens, Tried, int]
"""A block, its codecs, and a row of its vectors of thresholds."""


class _Search:
    """One run; holds what is the same for all blocks."""

    def __init__(
        self,
        ladder: Ladder,
        thresholds: Thresholds,
        profile: Profile,
        hierarchy: Hierarchy,
        goal: Goal,
        effects: Effects,
        num_classes: int,
        handling_ms: Mapping[str, float],
    ) -> None:
        self.ladder, self.goal, self.effects = ladder, goal, effects
        self.measured = Measured(profile, ladder.cuts)
        self.hosts = hosts_of(hierarchy)
        self.cost = Cost(self.measured, num_classes, goal.rate_per_s, goal.watts, handling_ms)
        self.thresholds = thresholds
        self._quantiles = any("_p" in name for name in (goal.minimise, *goal.limits()))
        self.num_choices = self.num_priced = 0
        self._blocks = Blocks(ladder, self.measured, effects, self.thresholds, self.hosts)
        if (goal.minimise == "energy_j" or goal.max_energy_j is not None) and not goal.watts:
            raise PlanError("goal: energy_j needs watts of the nodes that count, e.g. [goal.watts.device] active = 5")

    def run(self, space: Space, bound: bool, look: Callable[[], None], front: Front[Tag]) -> Best[Tag]:
        """Price all of it."""
        self.thresholds.use(space.thresholds)
        best: Best[Tag] = Best(self.goal, front, AXES)
        blocks = list(self._blocks.of(space))
        if not blocks:
            reasons = "; ".join(sorted(self._blocks.left_out)) or "the space is empty"
            raise PlanError(f"nothing to choose from: {reasons}")
        ideals = [self._ideal(block) for block in blocks]
        order = sorted(range(len(blocks)), key=lambda index: float(ideals[index][AXES[0]].min()))
        for index in order:
            look()
            block = blocks[index]
            self.num_choices += block.num_codecs * len(self.thresholds.of(block.exits).vectors_GX)
            if bound and block.num_codecs > 1 and best.is_beyond(ideals[index]):
                continue
            for tokens in itertools.product(*block.tokens):
                named = tuple((tier, token) for (tier, _), token in zip(block.links, tokens, strict=True))
                self._take(best, block, named, self.thresholds.of(block.exits))
        if not self.thresholds.is_complete and best.tag is not None:
            block, named, _, _ = best.tag
            fine = self.thresholds.fine(block.exits)
            self.num_choices += len(fine.vectors_GX)
            self._take(best, block, named, fine)
        return best

    def _take(self, best: Best[Tag], block: Block, tokens: Tokens, tried: Tried) -> None:
        self.num_priced += len(tried.vectors_GX)
        best.take(self.price(block, tokens, tried, self._quantiles), partial(_tag, block, tokens, tried))

    def price(self, block: Block, tokens: Tokens, found: Tried, quantiles: bool) -> dict[str, Array]:
        """Figures by name, (G,)."""
        chosen = dict(tokens)
        codecs = [[self._coded(run, link, block.cuts, chosen) for link in range(run.at[-1])] for run in block.runs]
        figures = self.cost.figures(block.runs, codecs, found.share_GX, quantiles=quantiles)
        loss_G = found.loss_G + self._precision_loss(block, found)
        for tier, cut in block.links:
            loss_G = loss_G + self.thresholds.codec_loss(found, cut, chosen[tier])
        return {**_named(figures), "quality_loss": loss_G}

    def point(self, tag: Tag, window_ms: float) -> Point:
        block, tokens, tried, row = tag
        found = tried.row(row)
        figures = {name: float(value) for name, (value,) in self.price(block, tokens, found, True).items()}
        shares = dict(zip((*block.exits, self.thresholds.end), (float(x) for x in found.share_GX[0]), strict=True))
        batches = [max(times) for run in block.runs for times in run.batch_ms]
        choice = Choice(
            cuts=dict(block.cuts),
            exits=dict(zip(block.exits, (float(x) for x in found.vectors_GX[0]), strict=True)),
            engines=dict(block.engines),
            codecs=dict(tokens),
            max_batch=max(batches) if self.goal.rate_per_s else 64,
            window_ms=window_ms,
        )
        return Point(choice, Predicted(**figures, exit_share=shares))

    def left_out(self) -> set[str]:
        return self._blocks.left_out

    def describe(self, tag: Tag) -> str:
        return self.point(tag, 0.0).choice.told()

    def told(self, space: Space) -> str:
        """The space in words."""
        num_tokens = sorted(
            {len(self.measured.tokens([host[0].id], cut)) for host in self.hosts for cut in self.ladder.cuts}
        )
        text = (
            f"{len(space.cuts)} ways to cut, {len(space.exits)} sets of exits, up to {num_tokens[-1]} codecs per link, "
            f"{self.thresholds.num_vectors()} vectors of thresholds, engines and precisions by node"
        )
        if not self.thresholds.is_complete:
            text += "; thresholds lie on a grid, finer at last for the chosen cuts, exits and codecs"
        return text

    def _coded(self, run: Run, link: int, cuts: Mapping[Tier, str], tokens: Mapping[Tier, str]) -> Coded:
        tier, cut = crossed(cuts, run.path[link])
        found = self.measured.codec(run.path[link].id, run.path[link + 1].id, cut, tokens[tier])
        assert found is not None  # `_tokens` saw to it
        return Coded(found[0].encode_ns / 1e6, found[1].decode_ns / 1e6, found[0].num_bytes)

    def _ideal(self, block: Block) -> dict[str, Array]:
        """No codec makes any figure smaller than here."""
        found = self.thresholds.of(block.exits)
        codecs = []
        for run in block.runs:
            line = []
            for link in range(run.at[-1]):
                tier, _ = crossed(block.cuts, run.path[link])
                at = [name for name, _ in block.links].index(tier)
                some = [self._coded(run, link, block.cuts, {tier: token}) for token in block.tokens[at]]
                line.append(
                    Coded(*(min(getattr(c, key) for c in some) for key in ("encode_ms", "decode_ms", "num_bytes")))
                )
            codecs.append(line)
        loss_G = found.loss_G + self._precision_loss(block, found)
        for (_, cut), tokens in zip(block.links, block.tokens, strict=True):
            losses = [self.thresholds.codec_loss(found, cut, token) for token in tokens]
            loss_G = loss_G + np.minimum.reduce(losses)
        return {
            **_named(self.cost.figures(block.runs, codecs, found.share_GX, quantiles=self._quantiles, is_bound=True)),
            "quality_loss": loss_G,
        }

    def _precision_loss(self, block: Block, found: Tried) -> Array:
        """Of all nodes on the way from a view, the mean over views."""
        total_G: Array = np.zeros(len(found.vectors_GX))
        for run in block.runs:
            for first, last, precision in computed(block, run):
                loss_G = self.thresholds.computed_loss(found, first, last, precision)
                total_G = total_G + loss_G / len(block.runs)
        return total_G


def _tag(block: Block, tokens: Tokens, tried: Tried, row: int) -> Tag:
    return block, tokens, tried, row


def _named(figures: Figures) -> dict[str, Array]:
    return {name: getattr(figures, name) for name in Figures.__dataclass_fields__}
