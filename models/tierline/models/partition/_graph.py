"""What a cut is searched in: operators with a cost on every tier, tensors with a cost on every link between tiers.

Tiers are numbered from the sensor upwards; link b joins tier b and tier b + 1. The network's input is at tier 0, and
data only climbs: no operator reads what a higher tier made. Costs are seconds, or anything else that adds up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tierline.core.errors import ConfigError

INPUT = -1
"""Producer of the network's input."""


@dataclass(frozen=True, slots=True)
class Operator:
    """One vertex."""

    name: str
    costs: tuple[float, ...]
    """By tier, >= 0; `math.inf` where it cannot run."""


@dataclass(frozen=True, slots=True)
class Flow:
    """One tensor on its way from the operator that makes it to those that read it."""

    name: str
    producer: int
    """Index of an operator, or INPUT."""
    consumers: tuple[int, ...]
    """Indices of operators, each above the producer's."""
    costs: tuple[float, ...]
    """By link, >= 0, for crossing it once; `math.inf` where it must not cross."""


@dataclass(frozen=True, slots=True)
class CostGraph:
    """Operators in topological order. Raises ConfigError where the numbers do not fit each other."""

    operators: tuple[Operator, ...]
    flows: tuple[Flow, ...]

    def __post_init__(self) -> None:
        if not self.operators or any(len(x.costs) != self.num_tiers or not x.costs for x in self.operators):
            raise ConfigError("cost graph: needs operators, each with one cost per tier")
        for flow in self.flows:
            if len(flow.costs) != self.num_tiers - 1:
                raise ConfigError(f"cost graph: tensor {flow.name!r} needs {self.num_tiers - 1} costs, one per link")
            if any(not flow.producer < reader < len(self.operators) for reader in flow.consumers):
                raise ConfigError(f"cost graph: tensor {flow.name!r} is read before it is made; sort the operators")
        if any(math.isnan(cost) or cost < 0 for cost in self.costs()):
            raise ConfigError("cost graph: a cost is negative or not a number")

    @property
    def num_tiers(self) -> int:
        return len(self.operators[0].costs)

    def costs(self) -> list[float]:
        """Every number in it."""
        return [c for x in self.operators for c in x.costs] + [c for x in self.flows for c in x.costs]

    def cost(self, tiers: Sequence[int]) -> float:
        """Of operators at these tiers, a tensor being paid once per link it crosses; infinite where data descends."""
        total = math.fsum(x.costs[tier] for x, tier in zip(self.operators, tiers, strict=True))
        for flow in self.flows:
            made = 0 if flow.producer == INPUT else tiers[flow.producer]
            read = [tiers[reader] for reader in flow.consumers]
            if min(read, default=made) < made:
                return math.inf
            total += math.fsum(flow.costs[made : max(read, default=made)])
        return total

    def chain(self) -> bool:
        """Whether every operator reads what the one before it made, and nothing else."""
        links = [(flow.producer, flow.consumers) for flow in self.flows if flow.consumers]
        return sorted(links) == [(a, (b,)) for a, b in pairwise(range(-1, len(self.operators)))]
