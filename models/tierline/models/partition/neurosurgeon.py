"""The best single cut of a chain between two tiers, by trying every one.

    argmin_j  sum_{i <= j} c_i(0)  +  m_j  +  sum_{i > j} c_i(1)

Kang et al., "Neurosurgeon: collaborative intelligence between the cloud and mobile edge", ASPLOS 2017, section 5.
Deviations: the answer's way back is not counted, as everywhere here; costs are given, not regressed from layer types.
Status: checked (equal to `min_cut` on chains).
"""

from __future__ import annotations

from itertools import accumulate

from tierline.core.errors import ConfigError
from tierline.models.partition._graph import CostGraph


class Neurosurgeon:
    """The baseline: chains and two tiers only."""

    def place(self, graph: CostGraph) -> list[int]:
        """The tier of every operator. Raises ConfigError for a network that is no chain, or more than two tiers."""
        if graph.num_tiers != 2 or not graph.chain():
            raise ConfigError("neurosurgeon: cuts chains of operators between two tiers; use min_cut")
        moved = {flow.producer: flow.costs[0] for flow in graph.flows}
        below = list(accumulate((x.costs[0] for x in graph.operators), initial=0.0))
        above = list(accumulate((x.costs[1] for x in reversed(graph.operators)), initial=0.0))[::-1]
        size = len(graph.operators)
        totals = [below[j] + (moved[j - 1] if j < size else 0.0) + above[j] for j in range(size + 1)]
        cut = min(range(size, -1, -1), key=totals.__getitem__)
        return [0] * cut + [1] * (size - cut)
