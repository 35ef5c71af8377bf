"""Nodes in a line, each with the one before and the one after it: the spanning tree of a ring.

Metropolis weights: 1/3 for a neighbour where both have two, 1/3 at the ends too, except 1/2 for n = 2; the ends keep
2/3. The spectral gap falls as 1/n^2; a message needs n - 1 rounds from end to end. The tree that `relay` runs on where
the network is a ring, as in Vogels et al., "RelaySum for Decentralized Deep Learning on Heterogeneous Data", NeurIPS
2021. Deviations: none.
Status: checked (rows; a tree).
"""

from __future__ import annotations

from collections.abc import Iterable

from tierline.learning.topology._graph import Edge, Undirected, check_size


class Chain(Undirected):
    """Undirected path."""

    def edges(self, n: int) -> Iterable[Edge]:
        check_size("chain", n)
        return [(i, i + 1) for i in range(n - 1)]
