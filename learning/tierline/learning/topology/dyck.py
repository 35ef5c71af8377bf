"""The Dyck graph as decentralised learning uses it: 32 nodes, three neighbours each.

Four rings of eight, A = 0..7 to D = 24..31, joined at equal places p: A-B and C-D where p is even, A-C and B-D where p
is odd. Metropolis weights are 1/4 each. Aketi, Hashemi, Roy, "Global Update Tracking: A Decentralized Learning
Algorithm for Heterogeneous Data", NeurIPS 2023, as the authors' code numbers it. Deviations: none.
Status: partial (cubic and connected; that it is isomorphic to Dyck's graph was not checked).
"""

from __future__ import annotations

from tierline.learning.topology._graph import Edge, OfOneSize


def _edges() -> tuple[Edge, ...]:
    rings = [(8 * r + p, 8 * r + (p + 1) % 8) for r in range(4) for p in range(8)]
    a, b, c, d = 0, 8, 16, 24
    crosses = [(u + p, v + p) for p in range(8) for u, v in (((a, b), (c, d)) if p % 2 == 0 else ((a, c), (b, d)))]
    return (*rings, *crosses)


class Dyck(OfOneSize):
    """Undirected, n = 32."""

    name = "dyck"
    num_nodes = 32
    all_edges = _edges()
