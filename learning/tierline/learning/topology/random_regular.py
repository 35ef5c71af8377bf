"""A random graph in which every node has the same number of neighbours: several rings laid over one another.

    W = (I + sum_r (P_r + P_r')) / (degree + 1),   r = 1..degree/2,  P_r the cyclic shift along a random order of nodes

It is connected, and for degree 4 and more an expander with high probability: its spectral gap does not vanish with n.
Law, Siu, "Distributed Construction of Random Expander Networks", INFOCOM 2003, section II.
Deviations: neighbours that coincide add up their weights, so that a node may have fewer neighbours than `degree`. The
draws come from `seed`, the same on every node.
Status: checked (regular, connected; gap against the ring's).
"""

from __future__ import annotations

import numpy as np

from tierline.core.errors import ConfigError
from tierline.core.rng import Key
from tierline.learning.topology._graph import Matrix, Static, check_size, peers_of


class RandomRegular(Static):
    """Undirected; `degree` is even. Raises ConfigError."""

    def __init__(self, *, degree: int = 4, seed: int = 0) -> None:
        if degree < 2 or degree % 2:
            raise ConfigError(f"random_regular: degree = {degree} must be even and at least 2")
        self._degree, self._seed = degree, seed

    def mixing_matrix(self, n: int, round: int = 0) -> Matrix:
        check_size("random_regular", n)
        matrix: Matrix = np.eye(n)
        for r in range(self._degree // 2):
            order = Key("topology/random_regular", self._seed, "", "", str(r)).permutation(n)
            after = np.roll(order, -1)
            np.add.at(matrix, (order, after), 1.0)
            np.add.at(matrix, (after, order), 1.0)
        return matrix / (self._degree + 1)

    def peers_in(self, n: int, i: int, round: int = 0) -> tuple[int, ...]:
        return peers_of(self.mixing_matrix(n), i)

    peers_out = peers_in
