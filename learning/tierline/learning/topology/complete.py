"""Everybody hears everybody, and each counts 1/n: one mixing step reaches the mean.

W = 1 1' / n; eigenvalues 1 once and 0 n-1 times.
Status: checked (spectrum against the closed form).
"""

from __future__ import annotations

import numpy as np

from tierline.learning.topology._graph import Matrix, Static, check_size


class Complete(Static):
    """Undirected complete graph."""

    def mixing_matrix(self, n: int, round: int = 0) -> Matrix:
        check_size("complete", n)
        return np.full((n, n), 1.0 / n)

    def peers_in(self, n: int, i: int, round: int = 0) -> tuple[int, ...]:
        check_size("complete", n)
        return tuple(j for j in range(n) if j != i)

    peers_out = peers_in
