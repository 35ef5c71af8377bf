"""Neighbourhood gradient mean: own, and neighbours', gradients of one's own and of the neighbours' models are averaged.

    x <- x + gamma sum_j w_ij (x_j - x_i)
    g_ii = grad f_i(x);   g_ij = grad f_i(x_j as received), sent to j;   g_ji = grad f_j(x_i as sent), heard from j
    g = (1 - alpha) mean(g_ii, {g_ij}) + alpha mean(g_ii, {g_ji});   x <- x - lr u(g)

alpha = 0 needs no second message. With a `compressor` this is CompNGC: all g_ij, and g_ii, are compressed with error
feedback, a memory for each. Aketi, Kodge, Roy, "Neighborhood Gradient Mean: An Efficient Decentralized Learning Method
for Non-IID Data Distributions", TMLR 2023 (first "Neighborhood Gradient Clustering"), Algorithms 1 and 2, as the
authors' code has it: the neighbours' models are used as received, one's own after mixing.
Deviations: the variant with quasi-global momentum is left out. The means over a neighbourhood are plain: where peers
have different numbers of neighbours, gradients do not count alike, and the common optimum is missed.
Sends one model to all, then one gradient (compressed or not) to each neighbour; computes 1 + neighbours gradients.
State: momentum, error memories.
Status: partial (equation; the global gradient at consensus on the complete graph; accuracies were not repeated).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tierline.core.arrays import Params
from tierline.core.errors import ConfigError
from tierline.core.types import NodeId
from tierline.learning.effects import Effects, Message, exchange, gradient, params
from tierline.learning.gossip._local import Local, check_positive
from tierline.learning.gossip._mixing import like, mixed, to_all
from tierline.learning.gossip._squeezing import Squeezer
from tierline.learning.rule import State, Traits, Turn


class Peer(Local):
    """`compressor` names what squeezes gradients, its error feedback included in this rule; None: nothing does."""

    traits = Traits(tolerates_loss=False, per_edge_state=False, conserves="mean", directed=False)

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        gamma: float = 1.0,
        compressor: str | None = None,
        options: Mapping[str, object] | None = None,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
        check_positive("gamma", gamma)
        if not 0.0 <= alpha <= 1.0:
            raise ConfigError(f"ngm: alpha = {alpha} must be in [0, 1]")
        self._alpha, self._gamma = alpha, gamma
        inner = {"inner": compressor, "options": dict(options or {})}
        self._squeezer = Squeezer("ngm", "error_feedback", inner) if compressor else None

    def turn(self, t: Turn) -> Effects[None]:
        got = yield from exchange("x", to_all(t, x=self.x), t.peers_in)
        x = mixed(t, self.x, got, strength=self._gamma)
        own = (yield from gradient(x, t.batch)).values
        mine: list[Params] = [own if self._squeezer is None else self._squeezer.squeeze(t, "g", own, t.me)[1]]
        theirs = mine.copy()
        out: dict[NodeId, Message] = {}
        for j in got:
            cross = (yield from gradient(params(got[j], "x", x), t.batch)).values
            if self._squeezer is None:
                out[j] = {"g": cross.flat}
            else:
                out[j], cross = self._squeezer.squeeze(t, "g", cross, j)
            mine.append(cross)
        if self._alpha:
            back = yield from exchange("g", out, t.peers_in)
            theirs += [self._opened(t, j, message, x) for j, message in back.items()]
        g = (1.0 - self._alpha) * _mean(mine) + self._alpha * _mean(theirs)
        self.x = x - t.lr * self.direction(x, g)

    def _opened(self, t: Turn, sender: NodeId, message: Message, like: Params) -> Params:
        if self._squeezer is None:
            return params(message, "g", like)
        return self._squeezer.expand(t, "g", message, sender, like, mine=True)

    def state(self) -> State:
        return {**super().state(), **{f"memory/{k}": v for k, v in self._memories().items()}}

    def load(self, state: State) -> None:
        super().load(state)
        if self._squeezer is not None:
            head = "memory/"
            self._squeezer.load({k[len(head) :]: v for k, v in state.items() if k.startswith(head)})

    def _memories(self) -> State:
        return {} if self._squeezer is None else self._squeezer.state()


def _mean(gradients: Sequence[Params]) -> Params:
    return like(gradients[0], np.mean([g.flat for g in gradients], axis=0, dtype=np.float64))
