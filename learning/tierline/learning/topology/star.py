"""Node 0 in the middle, which everybody hears and nobody else: where a server and its workers stand.

Metropolis weights: a leaf counts 1/n for the hub and the hub 1/n for every leaf and itself, a leaf 1 - 1/n for itself.
W is symmetric; its eigenvalues are 1 once, 1 - 1/n n-2 times, and 0 once.
Status: checked (spectrum against the closed form).
"""

from __future__ import annotations

import numpy as np

from tierline.learning.topology._graph import Matrix, Static, check_size


class Star(Static):
    """Undirected star."""

    def mixing_matrix(self, n: int, round: int = 0) -> Matrix:
        check_size("star", n)
        matrix: Matrix = (1.0 - 1.0 / n) * np.eye(n)
        matrix[0, :] = matrix[:, 0] = 1.0 / n
        return matrix

    def peers_in(self, n: int, i: int, round: int = 0) -> tuple[int, ...]:
        check_size("star", n)
        return tuple(range(1, n)) if i == 0 else (0,)

    peers_out = peers_in
