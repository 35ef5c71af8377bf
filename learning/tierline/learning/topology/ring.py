"""Every node hears its two neighbours on a circle, and each of the three counts one third.

W = (I + P + P') / 3 with the cyclic shift P; its eigenvalues are (1 + 2 cos(2 pi k / n)) / 3 for k = 0..n-1.
The spectral gap is 2/3 (1 - cos(2 pi / n)); for even n the smallest eigenvalue is -1/3 (see lazy_ring).
Weights as in Lian et al., "Can Decentralized Algorithms Outperform Centralized Algorithms?", NeurIPS 2017.
Status: checked (spectrum against the closed form).
"""

from __future__ import annotations

from tierline.learning.topology._graph import Matrix, Static, check_size, ring_matrix, ring_peers


class Ring(Static):
    """Undirected ring; with one node there is nobody to hear, with two the neighbour counts two thirds."""

    def mixing_matrix(self, n: int, round: int = 0) -> Matrix:
        check_size("ring", n)
        return ring_matrix(n, 1.0 / 3.0)

    def peers_in(self, n: int, i: int, round: int = 0) -> tuple[int, ...]:
        check_size("ring", n)
        return ring_peers(n, i)

    peers_out = peers_in
