"""A sum at the node that adds it up: contributions come one by one, or pre-added, in any order."""

from __future__ import annotations

import numpy as np

from tierline.core.errors import BadFrame, ShapeMismatch
from tierline.core.link.letters import Part
from tierline.core.types import NodeId
from tierline.learning.effects import Reduce, Reduced
from tierline.learning.fixed import WeightedSum


class Gather:
    """One sum under way. `decided` are the members that it closed with before, where the turn is taken again."""

    def __init__(
        self, e: Reduce, decided: frozenset[NodeId] | None, max_weight: float, within_ns: int | None = None
    ) -> None:
        self.e = e
        self._within_ns = within_ns
        self.members: set[NodeId] = set()
        self._decided, self._max_weight = decided, max_weight
        self._total: WeightedSum | None = None
        self.first_ns = 0
        """When the first part came."""

    @property
    def is_full(self) -> bool:
        """Nothing more has to be waited for."""
        if self._decided is not None:
            return self.members == self._decided
        return len(self.members) >= (len(self.e.group) if self.e.quorum is None else self.e.quorum)

    @property
    def deadline_ns(self) -> int | None:
        """When it closes with what is there; None: not yet, or never."""
        if self._decided is not None or self._within_ns is None or not self.members:
            return None
        return self.first_ns + self._within_ns

    def add(self, part: Part, now_ns: int) -> None:
        """Raises BadFrame or ShapeMismatch for a part that does not fit; one that is here already changes nothing."""
        members = frozenset(part.members)
        if not members or not members <= self.e.group:
            strangers = ", ".join(sorted(members - self.e.group)) or "nobody"
            raise BadFrame(f"sum {self.e.tag!r}: a part of {strangers}, who take no part in it")
        if members <= self.members or (self._decided is not None and not members <= self._decided):
            return
        if members & self.members:
            raise BadFrame(f"sum {self.e.tag!r}: {', '.join(sorted(members & self.members))} would count twice")
        self._check(part)
        if self._total is None:
            self.first_ns = now_ns
            self._total = WeightedSum(part.integers, part.weight_units, part.fraction_bits)
        else:
            own = self._total.integers  # the first part may lie in the letter that brought it
            integers = np.add(own, part.integers, out=own if own.flags.writeable else None)
            weight_units = self._total.weight_units + part.weight_units
            self._total = WeightedSum(integers, weight_units, part.fraction_bits)
        self.members |= members

    def result(self) -> Reduced:
        assert self._total is not None
        self._total.integers.flags.writeable = False
        return Reduced(self.e.value.layout, self._total, tuple(sorted(self.members)))

    def _check(self, part: Part) -> None:
        where, num_values = f"sum {self.e.tag!r}", len(self.e.value.flat)
        if part.integers.shape != (num_values,) or part.fraction_bits != self.e.fraction_bits:
            raise ShapeMismatch(
                f"{where}: int64{list(part.integers.shape)} with {part.fraction_bits} fraction bits, "
                f"expected int64[{num_values}] with {self.e.fraction_bits}"
            )
        check_size(part, len(self.e.group), self._max_weight, where)


def check_size(part: Part, num_members: int, max_weight: float, where: str) -> None:
    """Of a part of a sum over so many members. Raises BadFrame where it says more than its own members may."""
    num_own = len(part.members)
    if not 0 < part.weight_units <= max_weight * 2**32 * num_own:
        weight = f"{part.weight_units / 2**32:g} for {num_own}"
        raise BadFrame(f"{where}: a weight of {weight}, at most {max_weight:g} each")
    largest = max(int(part.integers.max(initial=0)), -int(part.integers.min(initial=0)))
    if largest * num_members > 2**63 * num_own:
        raise BadFrame(f"{where}: values so large that the group's sum could overflow")


def check_total(part: Part, e: Reduce) -> Reduced:
    """A sum that another node has closed. Raises BadFrame or ShapeMismatch."""
    if not part.members or not set(part.members) <= e.group:
        raise BadFrame(f"sum {e.tag!r}: its members are not those of the group")
    if part.integers.shape != e.value.flat.shape or part.fraction_bits != e.fraction_bits:
        raise ShapeMismatch(f"sum {e.tag!r}: int64{list(part.integers.shape)}, expected {list(e.value.flat.shape)}")
    part.integers.flags.writeable = False
    return Reduced(e.value.layout, WeightedSum(part.integers, part.weight_units, part.fraction_bits), part.members)
