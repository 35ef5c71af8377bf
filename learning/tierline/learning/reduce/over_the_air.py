"""The mean as a wireless channel adds it up: all workers send random mixtures at once, however many they are.

    v_p = H R g_p / sqrt(k);   worker p sends a w_p v_p / h_p over k uses of the channel, unless |h_p| < cutoff
    y = a sum_p w_p v_p + noise;   G = R H' y / (a W sqrt(k)),   W = sum_p w_p of those who sent
    E G = mean g,   E |G - g|^2 = (n/k - 1) |g|^2 + n noise^2 / (a W)^2,   g their mean, filled up to n values

R has random signs on its diagonal, anew each time and the same on all nodes, H the first k rows of the n x n Hadamard
matrix, h_p is worker p's Rayleigh fading, E |h|^2 = 1, which it knows. `a` is common, and such that no worker spends
more than `power` per use: 2^(-b/2) sqrt(k power), b the least whole number for which this holds. Workers agree on b by
a sum of counts, so that no message grows with their number. If all fade, the strongest sends.
After Abdi, Malur Saidutta, Fekri, "Analog Compression and Communication for Federated Learning over Wireless MAC",
SPAWC 2020: random linear coding, sums over the air, power management, idle nodes.
Deviations: unknown, see status. The channel is simulated: sums are exact, noise is added by every node alike.
Sends k values and 256 counts per node. Remembers nothing.
Status: reconstructed (from the abstract; the paper's equations were not at hand. Checked: the two formulas above).
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from tierline.core.arrays import Params
from tierline.core.errors import ConfigError
from tierline.core.rng import Key
from tierline.core.types import Array, NodeId
from tierline.kernels import hadamard
from tierline.learning.effects import Effects, Reduce, Reduced
from tierline.learning.fixed import FRACTION_BITS
from tierline.learning.rule import State, Turn
from tierline.learning.signs import random_signs

_NUM_COUNTS = 256
"""Half octaves of amplitude, from 2^-64 to 2^63.5."""


class OverTheAir:
    """Averages over a simulated multiple-access channel. `share` is k / n, `noise` its standard deviation per use,
    `power` what a worker may spend per use, `cutoff` the weakest fading at which it sends; without `fading`
    all channels are 1. `fraction_bits` is the resolution of the sums, see `learning.fixed`."""

    exact: ClassVar[bool] = False

    def __init__(
        self,
        *,
        share: float = 0.5,
        noise: float = 0.01,
        power: float = 1.0,
        cutoff: float = 0.3,
        fading: bool = True,
        fraction_bits: int = FRACTION_BITS,
    ) -> None:
        if not 0.0 < share <= 1.0 or not power > 0.0:
            raise ConfigError(f"over_the_air: share = {share} must be above 0 and at most 1, power = {power} above 0")
        if not 0.0 <= noise < math.inf or not 0.0 <= cutoff < math.inf:
            raise ConfigError(f"over_the_air: noise = {noise} and cutoff = {cutoff} must be at least 0 and finite")
        self._share, self._noise, self._power = share, noise, power
        self._cutoff, self._fading, self._fraction_bits = cutoff, fading, fraction_bits

    def mean(self, key: str, value: Params, t: Turn, *, weight: float = 1.0) -> Effects[Params]:
        fading = {node: self._fading_of(key, node, t) for node in t.nodes}
        senders = frozenset(node for node, h in fading.items() if h >= self._cutoff)
        senders = senders or frozenset((max(t.nodes, key=lambda node: fading[node]),))
        num_values = value.flat.size
        n = hadamard.padded(num_values)
        k = min(n, max(1, round(self._share * n)))
        signs = random_signs(t.shared_rng(f"{key}/signs"), n)

        x_1n = np.zeros((1, n), np.float32)
        x_1n[0, :num_values] = value.flat
        v = hadamard.transform(x_1n * signs / np.float32(math.sqrt(k)))[0, :k]
        amplitude = weight * float(np.linalg.norm(v.astype(np.float64))) / fading[t.me] if t.me in senders else 0.0
        counts = Params.from_arrays({"counts": _count(amplitude)})
        got = yield from self._sum(f"{key}/power", counts, senders, t, 1.0)
        a = math.sqrt(k * self._power) * 2.0 ** (-_largest(got.sum["counts"]) / 2)

        got = yield from self._sum(f"{key}/air", Params.from_arrays({"v": v}), senders, t, weight)
        y = got.total.mean() + _normal(t.shared_rng(f"{key}/noise"), k) * (self._noise / (a * got.weight))
        v_1n = np.zeros((1, n), np.float32)
        v_1n[0, :k] = y / math.sqrt(k)
        x_1n = hadamard.transform(v_1n) * signs
        return Params(value.layout, x_1n[0, :num_values].copy(), buffers=value.buffers)

    def state(self) -> State:
        return {}

    def load(self, state: State) -> None:
        """Nothing is remembered."""

    def _sum(self, tag: str, value: Params, senders: frozenset[NodeId], t: Turn, weight: float) -> Effects[Reduced]:
        got: Reduced = yield Reduce(tag, value, senders, frozenset(t.nodes), weight, fraction_bits=self._fraction_bits)
        return got

    def _fading_of(self, key: str, node: NodeId, t: Turn) -> float:
        """|h| of a node in this round; all nodes draw it alike."""
        if not self._fading:
            return 1.0
        u = float(Key(t.run, t.round, node, "", f"{key}/fading").uniform(1)[0])
        return math.sqrt(-math.log1p(-u))


def _normal(key: Key, num_values: int) -> Array:
    """Standard normal values, by Box and Muller's transform."""
    u = key.uniform(2 * num_values).astype(np.float64)
    return np.asarray(np.sqrt(-2 * np.log1p(-u[:num_values])) * np.cos(2 * np.pi * u[num_values:]))


def _count(amplitude: float) -> Array:
    """A one in the least half octave that is not below `amplitude`; none for 0."""
    counts = np.zeros(_NUM_COUNTS, np.float32)
    if amplitude > 0:
        half_octave = math.ceil(2 * math.log2(amplitude))
        counts[min(max(half_octave + _NUM_COUNTS // 2, 0), _NUM_COUNTS - 1)] = 1
    return counts


def _largest(counts: Array) -> int:
    """The highest half octave that somebody counted, 0 where nobody did."""
    places = np.flatnonzero(counts)
    return int(places[-1]) - _NUM_COUNTS // 2 if places.size else 0
