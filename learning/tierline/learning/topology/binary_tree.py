"""A binary tree by number: node i stands below node (i - 1) // 2. Any two nodes are at most 2 log2 n apart.

Metropolis weights. A short tree for `relay`: Vogels et al., "RelaySum for Decentralized Deep Learning on Heterogeneous
Data", NeurIPS 2021, section 5, who use two such trees at once, each for half of the values.
Deviations: one tree only, so that leaves carry less than inner nodes.
Status: checked (a tree; its depth).
"""

from __future__ import annotations

from collections.abc import Iterable

from tierline.learning.topology._graph import Edge, Undirected, check_size


class BinaryTree(Undirected):
    """Undirected tree of depth floor(log2 n)."""

    def edges(self, n: int) -> Iterable[Edge]:
        check_size("binary_tree", n)
        return [(i, (i - 1) // 2) for i in range(1, n)]
