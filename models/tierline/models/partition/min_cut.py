"""The cheapest placement of any acyclic network on two or more tiers, exact, by one minimum s-t cut.

    min  sum_v c_v(tier(v))  +  sum_x sum_{b: tier(made x) <= b < max tier(read x)} m_x(b)      s.t. data only climbs

For every operator v a chain s = v_0 -> v_1 -> ... -> v_n = t, whose edge v_k -> v_{k+1} costs c_v(k): the edge that is
cut names the tier, and infinite opposite edges let only one be cut. v_k lies on the source's side where tier(v) >= k.
For every tensor x and link b an auxiliary node between its readers at b + 1 (infinite) and its maker (m_x(b)), so that
it is paid once however many read it. Infinite edges from makers to readers forbid a way back down.
Two tiers: Hu et al., "Dynamic adaptive DNN surgery", INFOCOM 2019 (DADS, light load), with the auxiliary node. More
tiers: the layered construction of Ishikawa, "Exact optimization for Markov random fields with convex priors", PAMI
2003, section 3; it needs no convexity here, since a tensor's cost is a sum over links.
Deviations: the minimum over delay only; DADS' heavy load (throughput) is another, NP-hard problem.
Status: checked (equal to `brute_force` on random graphs).
"""

from __future__ import annotations

import math

from tierline.core.errors import ConfigError
from tierline.models.partition._graph import INPUT, CostGraph
from tierline.models.partition._max_flow import FlowNetwork


class MinCut:
    """Where several placements are cheapest: the one with least above the device."""

    def place(self, graph: CostGraph) -> list[int]:
        """The tier of every operator. Raises ConfigError where no placement is possible."""
        cuts, num_operators = graph.num_tiers - 1, len(graph.operators)
        # More than all finite costs together stands for infinity, which floats cannot subtract.
        never = 2.0 * math.fsum(cost for cost in graph.costs() if cost < math.inf) + 1.0
        source, sink = 0, 1
        network = FlowNetwork(2 + (num_operators + len(graph.flows)) * cuts)

        def above(operator: int, link: int) -> int:
            """The node on the source's side where the operator runs above this link."""
            return 2 + operator * cuts + link

        for index, operator in enumerate(graph.operators):
            steps = [source, *(above(index, link) for link in range(cuts)), sink]
            for tier, cost in enumerate(operator.costs):
                inner = 0 < tier < graph.num_tiers - 1
                network.add(steps[tier], steps[tier + 1], min(cost, never), never if inner else 0.0)
        for index, flow in enumerate(graph.flows):
            for link in range(cuts):
                any_reader = above(num_operators + index, link)
                maker = sink if flow.producer == INPUT else above(flow.producer, link)
                network.add(any_reader, maker, min(flow.costs[link], never))
                for reader in flow.consumers:
                    network.add(above(reader, link), any_reader, never)
                    if flow.producer != INPUT:
                        network.add(maker, above(reader, link), never)
        if network.max_flow(source, sink) >= never:
            raise ConfigError("cut: no placement is possible; some operator or tensor fits no tier or link")
        side = network.reached(source)
        return [sum(side[above(index, link)] for link in range(cuts)) for index in range(num_operators)]
