"""Nodes on a grid whose opposite borders meet; each hears four neighbours, and each of the five counts one fifth.

    n = a * b,  a the largest divisor of n up to sqrt(n);   W = (I + P_a + P_a' + P_b + P_b') / 5

with the cyclic shifts P_a along columns and P_b along rows; the eigenvalues are
(1 + 2 cos(2 pi k / a) + 2 cos(2 pi l / b)) / 5. Shape and weights as in Koloskova, Stich, Jaggi, "Decentralized
Stochastic Optimization and Gossip Algorithms with Compressed Communication", ICML 2019, and the authors' experiments.
Deviations: where neighbours coincide (a or b below 3) their weights add up; for a prime n it is a ring.
Status: checked (spectrum against the closed form).
"""

from __future__ import annotations

import math

import numpy as np

from tierline.learning.topology._graph import Matrix, Static, check_size, peers_of


class Torus(Static):
    """Undirected periodic grid, numbered row by row."""

    def mixing_matrix(self, n: int, round: int = 0) -> Matrix:
        check_size("torus", n)
        a = next(d for d in range(math.isqrt(n), 0, -1) if n % d == 0)
        places = np.arange(n).reshape(a, n // a)
        matrix: Matrix = np.eye(n)
        for axis in (0, 1):
            for step in (1, -1):
                matrix[places.ravel(), np.roll(places, step, axis=axis).ravel()] += 1.0
        return matrix / 5.0

    def peers_in(self, n: int, i: int, round: int = 0) -> tuple[int, ...]:
        return peers_of(self.mixing_matrix(n), i)

    peers_out = peers_in
