"""Every placement of a small network, one after the other: the oracle that other ways of cutting are tested against.

Status: checked (it is the definition).
"""

from __future__ import annotations

import itertools
import math

from tierline.core.errors import ConfigError
from tierline.models.partition._graph import CostGraph

MAX_PLACEMENTS = 1 << 20


class BruteForce:
    """tiers ** operators placements."""

    def place(self, graph: CostGraph) -> list[int]:
        """The tier of every operator. Raises ConfigError for too large a graph, or where nothing is possible."""
        if graph.num_tiers ** len(graph.operators) > MAX_PLACEMENTS:
            raise ConfigError(
                f"brute_force: {graph.num_tiers} tiers ** {len(graph.operators)} operators are more than "
                f"{MAX_PLACEMENTS} placements; use min_cut"
            )
        best = min(itertools.product(range(graph.num_tiers), repeat=len(graph.operators)), key=graph.cost)
        if graph.cost(best) == math.inf:
            raise ConfigError("cut: no placement is possible; some operator or tensor fits no tier or link")
        return list(best)
