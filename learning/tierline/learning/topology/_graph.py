"""What topologies share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tierline.core.errors import ConfigError

Matrix = npt.NDArray[np.float64]


class Static:
    """A graph that stays the same."""

    def period(self, n: int) -> int:
        return 1


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
