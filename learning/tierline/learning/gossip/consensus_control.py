"""Consensus control: after each step, peers gossip until they agree well enough, at most `max_mixings` times.

    x <- x - lr u;   repeat x <- W x until  Xi <= target * phi
    Xi^2 = (1/n) sum_i |x_i - sum_j w_ij x_j|^2;   phi = mean over peers and turns (exponential) of lr |u_i|

Kong, Lin, Koloskova, Jaggi, Stich, "Consensus Control for Decentralized Deep Learning", ICML 2021: below a critical
distance between peers, training is as good as centralised, and that matters most early in training. The paper's
critical distance holds constants that nobody knows in practice; measuring against the length of steps is a guess at its
rule.
Deviations: from memory of the paper, no code was found. Xi is the root mean square of the gossip residuals, added up
exactly over all peers (one number each), so that all mix equally often. After `until_round`, one mixing a turn remains.
Sends one model per mixing, and one number to the sum. State: momentum, phi.
Status: reconstructed (the bound is kept; without a limit it is synchronous SGD).
"""

from __future__ import annotations

import math

import numpy as np

from tierline.core.arrays import Params
from tierline.core.errors import ConfigError
from tierline.learning.effects import Effects, exchange, gradient, reduce
from tierline.learning.gossip._local import Local, check_positive, check_share
from tierline.learning.gossip._mixing import mixed, to_all
from tierline.learning.rule import NodeInfo, Traits, Turn


class Peer(Local):
    """`num_mixings` is how often the last turn mixed."""

    traits = Traits(tolerates_loss=False, per_edge_state=False, conserves="mean", directed=True)
    kept = ("x", "m", "phi", "num_turns", "num_mixings")

    def __init__(
        self,
        *,
        target: float = 0.5,
        max_mixings: int = 16,
        until_round: int | None = None,
        memory: float = 0.9,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
        check_positive("target", target)
        check_share("memory", memory)
        if max_mixings < 1:
            raise ConfigError(f"consensus_control: max_mixings = {max_mixings} must be at least 1")
        self._target, self._max, self._until, self._memory = target, max_mixings, until_round, memory

    def start(self, x: Params, node: NodeInfo) -> None:
        super().start(x, node)
        self.phi, self.num_turns, self.num_mixings = 0.0, 0, 0

    def turn(self, t: Turn) -> Effects[None]:
        g = yield from gradient(self.x, t.batch)
        step = t.lr * self.direction(self.x, g.values)
        x = self.x - step
        controlled = self._until is None or t.round < self._until
        if controlled:
            length = yield from self._mean(t, "length", step.norm())
            self.phi = self._memory * self.phi + (1.0 - self._memory) * length
            self.num_turns += 1
        bound = self._target * self.phi / (1.0 - self._memory**self.num_turns) if self.num_turns else 0.0
        for mixing in range(self._max if controlled else 1):
            got = yield from exchange(f"x{mixing}", to_all(t, x=x), t.peers_in)
            after = mixed(t, x, got)
            residual = (after - x).norm()
            x, self.num_mixings = after, mixing + 1
            if controlled and math.sqrt((yield from self._mean(t, f"xi{mixing}", residual**2))) <= bound:
                break
        self.x = x

    def _mean(self, t: Turn, tag: str, value: float) -> Effects[float]:
        """Mean over all peers, equal bits on each."""
        one = Params.from_arrays({tag: np.array([value])})
        total = yield from reduce(tag, one, t.nodes, fraction_bits=40)
        return float(total.mean.flat[0])
