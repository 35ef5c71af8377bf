"""What topologies share."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from tierline.core.errors import ConfigError

Matrix = npt.NDArray[np.float64]
Edge = tuple[int, int]


class Static:
    """A graph that stays the same."""

    def period(self, n: int) -> int:
        return 1


class Undirected(Static):
    """A graph given by its edges, with Metropolis weights w_ij = 1 / (1 + max(deg_i, deg_j)); the rest is one's own.

    Xiao, Boyd, "Fast Linear Iterations for Distributed Averaging", Systems and Control Letters 2004, section 4.2.
    """

    def edges(self, n: int) -> Iterable[Edge]:
        """Each pair of different nodes once, in either order. Raises ConfigError for an n that does not fit."""
        raise NotImplementedError

    def mixing_matrix(self, n: int, round: int = 0) -> Matrix:
        near: Matrix = self._adjacency(n)
        degrees = near.sum(axis=1)
        matrix: Matrix = near / (1.0 + np.maximum(degrees[:, None], degrees[None, :]))
        return matrix + np.diag(1.0 - matrix.sum(axis=1))

    def peers_in(self, n: int, i: int, round: int = 0) -> tuple[int, ...]:
        return tuple(int(j) for j in self._adjacency(n)[i].nonzero()[0])

    def peers_out(self, n: int, i: int, round: int = 0) -> tuple[int, ...]:
        return self.peers_in(n, i, round)

    def _adjacency(self, n: int) -> Matrix:
        near: Matrix = np.zeros((n, n))
        for i, j in self.edges(n):
            near[i, j] = near[j, i] = 1.0
        return near


class OfOneSize(Undirected):
    """An undirected graph with a number of nodes of its own."""

    name: str
    num_nodes: int
    all_edges: tuple[Edge, ...]

    def edges(self, n: int) -> Iterable[Edge]:
        if n != self.num_nodes:
            raise ConfigError(f"topology {self.name!r}: n = {n}; this graph has exactly {self.num_nodes} nodes")
        return self.all_edges


def check_size(name: str, n: int) -> None:
    if n < 1:
        raise ConfigError(f"topology {name!r}: n = {n}; a topology needs at least one node")


def ring_matrix(n: int, neighbour: float) -> Matrix:
    """Circulant: `neighbour` for i-1 and i+1 (mod n), the rest for i; where the two coincide (n = 2) they add up."""
    eye: Matrix = np.eye(n)
    matrix: Matrix = (1.0 - 2.0 * neighbour) * eye
    matrix += neighbour * (np.roll(eye, 1, axis=1) + np.roll(eye, -1, axis=1))
    return matrix


def ring_peers(n: int, i: int) -> tuple[int, ...]:
    return tuple(sorted({(i - 1) % n, (i + 1) % n} - {i}))


def peers_of(matrix: Matrix, i: int) -> tuple[int, ...]:
    """Whom node i hears according to row i."""
    return tuple(int(j) for j in matrix[i].nonzero()[0] if j != i)
