"""A ring that moves half as far: W = (W_ring + I) / 2, so that no eigenvalue is below 1/3.

A node counts 2/3, each neighbour 1/6; the eigenvalues are (2 + cos(2 pi k / n)) / 3 for k = 0..n-1. For rules that
need the smallest eigenvalue above -1/3, which an even ring meets with equality.
Status: checked (spectrum against the closed form).
"""

from __future__ import annotations

from tierline.learning.topology._graph import Matrix, Static, check_size, ring_matrix, ring_peers


class LazyRing(Static):
    """Undirected ring with a heavy self weight."""

    def mixing_matrix(self, n: int, round: int = 0) -> Matrix:
        check_size("lazy_ring", n)
        return ring_matrix(n, 1.0 / 6.0)

    def peers_in(self, n: int, i: int, round: int = 0) -> tuple[int, ...]:
        check_size("lazy_ring", n)
        return ring_peers(n, i)

    peers_out = peers_in
