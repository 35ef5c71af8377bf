"""Gradients of low rank: one step of power iteration from the last one's result, summed up on the way (PowerSGD).

Per matrix, with A_k = G_k + E_k, and p_k the weights over their sum:

    P = orthonormal columns of sum_k p_k A_k Q;   Q <- sum_k p_k A_k' P;   G = P Q';   E_k <- A_k - G

Tensors of more axes are matrices of axis 0 by all others; those with fewer are averaged as they are.
Vogels, Karimireddy, Jaggi, "PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization", NeurIPS
2019, Algorithms 1 and 2. Deviations: the last Q is made orthonormal before it is used, which spans the same space and
keeps sums within fixed point's resolution; its columns that vanished, and all columns at first, are drawn uniformly,
where the paper draws normal ones once. `min_gain` above 0 averages a matrix as it is where it would not become so many
times smaller, as the authors' library does below 2. Momentum belongs to the rule that uses the mean, after it.
Two dependent sums of rank (rows + columns) values per matrix. Remembers per key E, and Q of each matrix.
Every node gets equal bits: all that follows a sum is done in float64, in one order and without BLAS.
Status: checked (full rank is exact, all ranks hold equal bits, feedback and warm start lower the error; accuracies of
the paper were not repeated).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from tierline.core.arrays import Params
from tierline.core.errors import ConfigError, ShapeMismatch
from tierline.core.types import Array
from tierline.learning.effects import Effects, Reduced, reduce
from tierline.learning.fixed import FRACTION_BITS
from tierline.learning.rule import State, Turn

Wide = npt.NDArray[np.float64]


class PowerSGD:
    """Averages matrices by factors of `rank` columns. Without `feedback` what is lost stays lost, without `warm_start`
    each round begins from random columns. `fraction_bits` is the resolution of the sums, see `learning.fixed`."""

    exact: ClassVar[bool] = False

    def __init__(
        self,
        *,
        rank: int = 2,
        min_gain: float = 0.0,
        feedback: bool = True,
        warm_start: bool = True,
        fraction_bits: int = FRACTION_BITS,
    ) -> None:
        if rank < 1 or not min_gain >= 0.0:
            raise ConfigError(f"powersgd: rank = {rank} must be at least 1, min_gain = {min_gain} at least 0")
        self._rank, self._min_gain, self._fraction_bits = rank, min_gain, fraction_bits
        self._feedback, self._warm_start = feedback, warm_start
        self._lost: dict[str, Array] = {}
        self._q: dict[str, Wide] = {}

    def mean(self, key: str, value: Params, t: Turn, *, weight: float = 1.0) -> Effects[Params]:
        """Raises ShapeMismatch where the value of a key has another size than before."""
        a = value + Params(value.layout, self._lost_of(key, value))
        ranks = {name: self._rank_of(shape) for name, shape in value.layout}
        matrices = {name: a[name].reshape(len(a[name]), -1).astype(np.float64) for name, rank in ranks.items() if rank}
        q = {name: self._start(key, name, matrix.shape[1], ranks[name], t) for name, matrix in matrices.items()}

        left = {name: matrices[name] @ q[name] if name in matrices else a[name] for name in a}
        sums = _wide((yield from self._sum(f"{key}/p", left, t, weight)))
        p = {name: _orthonormal(sums[name]) for name in matrices}

        right = {name: matrix.T @ p[name] for name, matrix in matrices.items()}
        if right:
            q = _wide((yield from self._sum(f"{key}/q", right, t, weight)))

        shapes = dict(value.layout)
        parts = [(_product(p[name], q[name]) if name in p else sums[name]).reshape(shapes[name]).ravel() for name in a]
        flat = np.concatenate([*parts, np.empty(0)]).astype(np.float32)
        mean = Params(value.layout, flat, buffers=value.buffers)
        self._q |= {f"{key}/{name}": q[name] for name in matrices}
        if self._feedback:
            # Nothing is lost of what is averaged as it is.
            self._lost[key] = np.concatenate(
                [(a[name] - mean[name] if name in p else np.zeros_like(a[name])).ravel() for name in a]
                + [np.empty(0, np.float32)]
            )
        return mean

    def state(self) -> State:
        lost = {f"lost:{key}": value.copy() for key, value in self._lost.items()}
        return lost | {f"q:{name}": value.copy() for name, value in self._q.items()}

    def load(self, state: State) -> None:
        arrays = {name: np.array(value) for name, value in state.items()}
        self._lost = {name[5:]: value for name, value in arrays.items() if name.startswith("lost:")}
        self._q = {name[2:]: value for name, value in arrays.items() if name.startswith("q:")}

    def _sum(self, tag: str, arrays: dict[str, Array], t: Turn, weight: float) -> Effects[Reduced]:
        value = Params.from_arrays(arrays)
        return (yield from reduce(tag, value, t.nodes, weight=weight, fraction_bits=self._fraction_bits))

    def _lost_of(self, key: str, value: Params) -> Array:
        lost = self._lost.get(key)
        if lost is None:
            return np.zeros_like(value.flat)
        if lost.shape != value.flat.shape:
            raise ShapeMismatch(f"powersgd: {key!r} has {value.flat.size} values now and had {lost.size} before")
        return lost

    def _rank_of(self, shape: tuple[int, ...]) -> int:
        """Columns for a tensor; 0 where it is averaged as it is."""
        rows, columns = (shape[0], int(np.prod(shape[1:]))) if len(shape) > 1 else (0, 0)
        rank = min(self._rank, rows, columns)
        gains = rank * (rows + columns) * self._min_gain <= rows * columns
        return rank if gains else 0

    def _start(self, key: str, name: str, num_rows: int, rank: int, t: Turn) -> Wide:
        """Orthonormal columns to begin with."""
        words = t.shared_rng(f"{key}/{name}").uniform(num_rows * rank)
        drawn: Wide = words.astype(np.float64).reshape(num_rows, rank) - 0.5
        last = self._q.get(f"{key}/{name}")
        if last is None or last.shape != drawn.shape or not self._warm_start:
            return _orthonormal(drawn)
        spanned = _orthonormal(last)
        gone = ~spanned.any(axis=0)
        return _orthonormal(np.where(gone, drawn, spanned)) if gone.any() else spanned


def _wide(got: Reduced) -> dict[str, Wide]:
    """The mean before it is rounded to float32."""
    flat, found, start = got.total.mean(), {}, 0
    for name, shape in got.layout:
        stop = start + int(np.prod(shape))
        found[name] = flat[start:stop].reshape(shape)
        start = stop
    return found


def _orthonormal(columns: Wide) -> Wide:
    """Modified Gram-Schmidt, each column made orthogonal twice; one that the others span becomes zeros."""
    done: Wide = columns.copy()
    for j in range(done.shape[1]):
        before = np.sqrt((done[:, j] ** 2).sum())
        for _ in range(2):
            for i in range(j):
                done[:, j] -= (done[:, i] * done[:, j]).sum() * done[:, i]
        after = np.sqrt((done[:, j] ** 2).sum())
        # Below this, what is left is rounding.
        done[:, j] = done[:, j] / after if after > 1e-9 * before else 0.0
    return done


def _product(p: Wide, q: Wide) -> Wide:
    """P Q', column by column, so that the order of additions is the same everywhere."""
    total = np.zeros((len(p), len(q)))
    for column_p, column_q in zip(p.T, q.T, strict=True):
        total += column_p[:, None] * column_q
    return total
