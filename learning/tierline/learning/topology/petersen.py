"""The Petersen graph: ten nodes, three neighbours each, any two at most two steps apart.

Nodes 0..4 form a ring, node i has the spoke i + 5, and among 5..9 every second place is joined: i + 5 with
(i + 2) mod 5 + 5. Metropolis weights are 1/4 each; W has the eigenvalues 1, 1/2 (five times) and -1/4 (four times).
One of the graphs of Aketi, Hashemi, Roy, "Global Update Tracking: A Decentralized Learning Algorithm for Heterogeneous
Data", NeurIPS 2023. Deviations: none.
Status: checked (spectrum).
"""

from __future__ import annotations

from tierline.learning.topology._graph import OfOneSize


class Petersen(OfOneSize):
    """Undirected, n = 10."""

    name = "petersen"
    num_nodes = 10
    all_edges = tuple(edge for i in range(5) for edge in ((i, (i + 1) % 5), (i, i + 5), (i + 5, (i + 2) % 5 + 5)))
