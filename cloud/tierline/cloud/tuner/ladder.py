"""Where a network can be cut and left, and what a choice of cuts and exits makes of it: stages that run one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tierline.core.bundle import Candidates
from tierline.core.errors import PlanError
from tierline.core.plan import ORDER, Hierarchy, HierarchyNode
from tierline.core.types import Tier

END = "end"
"""In place of a candidate exit's name: the network's own end, which answers what reaches it."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Operators between two cuts that one tier runs without a break, and the exit behind them."""

    tier: Tier
    first: str
    last: str
    exit: str
    """Empty: nothing leaves here. `end`: everything does."""


@dataclass(frozen=True)
class Ladder:
    """A network's cuts from the input upwards, and the exits that hang on them."""

    cuts: tuple[str, ...]
    """From `input` to `output`."""
    exits: tuple[tuple[str, str], ...]
    """(name, cut) from the sensor upwards, at most one on a cut; without the network's end."""

    @classmethod
    def of(cls, candidates: Candidates) -> Ladder:
        cuts = candidates.cuts
        return cls(
            tuple(cut.name for cut in cuts),
            tuple((cut.exit.name, cut.name) for cut in cuts[:-1] if cut.exit is not None),
        )

    def at(self, cut: str) -> int:
        """Position of a cut. Raises PlanError."""
        if cut not in self.cuts:
            raise PlanError(f"no cut {cut!r}; there are {', '.join(self.cuts)}")
        return self.cuts.index(cut)

    def stages(self, cuts: Mapping[Tier, str], exits: Sequence[str]) -> tuple[Stage, ...]:
        """What runs where if each tier goes on to its cut; a tier that stops where the one below did has none.

        An exit belongs to the first tier that gets as far as its cut. The first tier always has a stage, if an empty
        one, for a view's first Section runs where the view is.
        """
        hung = dict(self.exits)
        marks = [(self.at(hung[name]), name) for name, _ in self.exits if name in exits]
        made: list[Stage] = []
        done = 0
        for tier in sorted(cuts, key=lambda tier: ORDER[tier]):
            until = self.at(cuts[tier])
            if until < done:
                raise PlanError(f"the {tier.value}'s cut {cuts[tier]!r} is below that of the tier under it")
            for at, name in [mark for mark in marks if done < mark[0] <= until]:
                made.append(Stage(tier, self.cuts[done], self.cuts[at], name))
                done = at
            if until > done or not made:
                made.append(Stage(tier, self.cuts[done], self.cuts[until], ""))
                done = until
        if done != len(self.cuts) - 1:
            raise PlanError(f"nobody runs what is above the cut {self.cuts[done]!r}")
        last = made[-1]
        return (*made[:-1], Stage(last.tier, last.first, last.last, END))


def hosts_of(hierarchy: Hierarchy) -> list[tuple[HierarchyNode, ...]]:
    """The way from each node that hosts views to the root."""
    return [tuple(hierarchy.path_to_root(node.id)) for node in hierarchy.nodes if node.views]


def placed(stages: Sequence[Stage], path: Sequence[HierarchyNode]) -> list[int]:
    """Position on the way of the node that runs each stage: the first whose tier is not below the stage's."""
    found, at = [], 0
    for index, stage in enumerate(stages):
        while index and at < len(path) - 1 and ORDER[path[at].tier] < ORDER[stage.tier]:
            at += 1
        found.append(at)
    return found
