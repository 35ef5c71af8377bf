"""The choices of structure in a space: cuts, exits and engines, with the codecs that each link can have."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tierline.cloud.tuner.effects import Effects
from tierline.cloud.tuner.ladder import Ladder, Stage, placed
from tierline.cloud.tuner.measured import Measured, Run, Setting
from tierline.cloud.tuner.outcome import Thresholds
from tierline.cloud.tuner.space import Space
from tierline.core.plan import ORDER, HierarchyNode
from tierline.core.types import FLOAT32 as EXACT
from tierline.core.types import Array, Tier


@dataclass(frozen=True)
class Block:
    """Cuts, exits and engines; what is left is codecs and thresholds."""

    cuts: Mapping[Tier, str]
    exits: tuple[str, ...]
    engines: Mapping[str, Setting]
    runs: tuple[Run, ...]
    links: tuple[tuple[Tier, str], ...]
    """(tier below, cut) of every codec to choose."""
    tokens: tuple[tuple[str, ...], ...]
    """Codecs by link."""

    @property
    def num_codecs(self) -> int:
        return int(np.prod([len(tokens) for tokens in self.tokens], dtype=np.int64))


class Blocks:
    """Goes through spaces; `left_out` tells what could not be used, and why."""

    def __init__(
        self,
        ladder: Ladder,
        measured: Measured,
        effects: Effects,
        thresholds: Thresholds,
        hosts: Sequence[tuple[HierarchyNode, ...]],
    ) -> None:
        self._ladder, self._measured, self._effects, self._hosts = ladder, measured, effects, hosts
        self._thresholds = thresholds
        self.left_out: set[str] = set()

    def of(self, space: Space) -> Iterator[Block]:
        for cuts, exits in itertools.product(space.cuts, space.exits):
            if not space.admits(cuts, exits):
                continue
            stages = self._ladder.stages(cuts, exits)
            links = self._links(cuts)
            tokens = tuple(tuple(self._tokens(tier, cut, space)) for tier, cut in links)
            if not all(tokens):
                continue
            for engines in self._engines(stages, exits, space):
                runs = [self._measured.run(host, stages, engines) for host in self._hosts]
                known = tuple(run for run in runs if run is not None)
                if len(known) == len(runs):
                    yield Block(cuts, exits, engines, known, links, tokens)
                else:
                    self.left_out.add(f"{_ends(cuts)}: a section, head or link on its way was not measured")

    def _links(self, cuts: Mapping[Tier, str]) -> tuple[tuple[Tier, str], ...]:
        """One codec per cut that is crossed: a tier that runs nothing passes on what it gets as it gets it."""
        found: dict[str, Tier] = {}
        for tier, cut in cuts.items():
            if cut != self._ladder.cuts[-1]:
                found.setdefault(cut, tier)
        return tuple((tier, cut) for cut, tier in found.items())

    def _tokens(self, tier: Tier, cut: str, space: Space) -> list[str]:
        """Codecs that every node concerned has measured at a cut, and whose effect is known."""
        nodes = [node.id for host in self._hosts for node in host if ORDER[node.tier] >= ORDER[tier]]
        found = []
        for token in self._measured.tokens(list(dict.fromkeys(nodes)), cut):
            if not space.allows(cut, token):
                continue
            if self._effects.knows(cut, token):
                found.append(token)
            else:
                self.left_out.add(f"codec {token} at {cut}: what it does to the answers was not measured")
        if not found:
            self.left_out.add(f"cut {cut}: no codec was measured on all nodes from the {tier.value} up")
        return found

    def _engines(self, stages: Sequence[Stage], exits: tuple[str, ...], space: Space) -> Iterator[dict[str, Setting]]:
        """Engines and precisions of the nodes that run something: each that no other is as good as in all of the node's
        stages, and in what it loses at every vector of thresholds."""
        mine: dict[str, dict[Stage, None]] = {}
        for host in self._hosts:
            for stage, at in zip(stages, placed(stages, host), strict=True):
                mine.setdefault(host[at].id, {})[stage] = None
        options = [
            [space.engines[node]] if node in space.engines else self._options(node, list(own), exits)
            for node, own in mine.items()
        ]
        for combination in itertools.product(*options):
            yield dict(zip(mine, combination, strict=True))

    def _options(self, node: str, stages: Sequence[Stage], exits: tuple[str, ...]) -> list[Setting]:
        price: dict[Setting, Array] = {}
        first, last = stages[0].first, stages[-1].last
        for setting in self._measured.settings(node):
            if setting[1] != EXACT and not self._effects.tried(setting[1]):
                self.left_out.add(f"precision {setting[1]} on {node}: what it does to the answers was not measured")
                continue
            found = [self._measured.stage(node, stage, setting) for stage in stages]
            known = [x for x in found if x is not None]
            if len(known) == len(found):
                times = [ms for x in known for ms in x[2].values()]
                price[setting] = np.append(self._loss(first, last, setting[1], exits), times)
        return [setting for setting in price if not _is_worse(setting, price)] or [("", EXACT)]

    def _loss(self, first: str, last: str, precision: str, exits: tuple[str, ...]) -> Array:
        tried = self._thresholds.of(exits)
        if precision == EXACT or first == last:
            return np.zeros(len(tried.vectors_GX))
        return self._thresholds.computed_loss(tried, first, last, precision)


def computed(block: Block, run: Run) -> list[tuple[str, str, str]]:
    """(first, last, precision) of what nodes on one way compute in a precision below float32."""
    ends: dict[str, tuple[str, str]] = {}
    for stage, at in zip(run.stages, run.at, strict=True):
        node = run.path[at].id
        ends[node] = (ends.get(node, (stage.first,))[0], stage.last)
    return [
        (first, last, block.engines[node][1])
        for node, (first, last) in ends.items()
        if first != last and block.engines[node][1] != EXACT
    ]


def crossed(cuts: Mapping[Tier, str], node: HierarchyNode) -> tuple[Tier, str]:
    """(tier that chooses the codec, cut) of what a node sends up."""
    cut = next(cut for tier, cut in reversed(list(cuts.items())) if ORDER[tier] <= ORDER[node.tier])
    return next(tier for tier, end in cuts.items() if end == cut), cut


def _is_worse(setting: Setting, price: Mapping[Setting, Array]) -> bool:
    """Whether another setting loses as little and is as fast everywhere, and is better, or earlier, somewhere."""
    mine, order = price[setting], list(price)
    for other, theirs in price.items():
        if other == setting or len(theirs) != len(mine) or (theirs > mine).any():
            continue
        if (theirs < mine).any() or order.index(other) < order.index(setting):
            return True
    return False


def _ends(cuts: Mapping[Tier, str]) -> str:
    return " ".join(f"{tier.value}..{cut}" for tier, cut in cuts.items())
