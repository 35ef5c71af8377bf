"""In round t every node hears one other, 2^t places behind it, and the two count one half each: one model per round.

x_i <- (x_i + x_{i - 2^s}) / 2 mod n,  s = t mod ceil(log2 n)

W_t is doubly stochastic but not symmetric. Where n is a power of two, the log2 n rounds of a period multiply to the
exact mean. Assran et al., "Stochastic Gradient Push for Distributed Deep Learning", ICML 2019, appendix A, the form
with one peer; with these weights it needs no push-sum weight.
Deviations: for other n the offsets run up to the largest power of two below n, and a period only comes near the mean.
Status: checked (product over a period; column and row sums).
"""

from __future__ import annotations

import numpy as np

from tierline.learning.topology._graph import Matrix, check_size


class Exponential:
    """Directed, changing with the round."""

    def period(self, n: int) -> int:
        check_size("exponential", n)
        return max(1, (n - 1).bit_length())

    def mixing_matrix(self, n: int, round: int = 0) -> Matrix:
        eye: Matrix = np.eye(n)
        return 0.5 * (eye + np.roll(eye, -self._offset(n, round), axis=1))

    def peers_in(self, n: int, i: int, round: int = 0) -> tuple[int, ...]:
        j = (i - self._offset(n, round)) % n
        return (j,) if j != i else ()

    def peers_out(self, n: int, i: int, round: int = 0) -> tuple[int, ...]:
        j = (i + self._offset(n, round)) % n
        return (j,) if j != i else ()

    def _offset(self, n: int, round: int) -> int:
        return int(2 ** (round % self.period(n)))
