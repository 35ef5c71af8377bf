"""RelaySGD: on a tree, models are relayed instead of mixed, so that everybody's reaches everybody with equal weight.

    x <- x - lr u;   send to each j:  M_ij = x + sum_{k != j} M_ki,  c_ij = 1 + sum_{k != j} c_ki  of the round before
    x <- (x + sum_j M_ji + (n - 1 - sum_j c_ji) x_first) / n

A model that stands still is averaged exactly once it has crossed the tree; what changes arrives later the farther away
it is. Unlike data leave no bias. Vogels, He, Koloskova, Lin, Karimireddy, Stich, Jaggi, "RelaySum for Decentralized
Deep Learning on Heterogeneous Data", NeurIPS 2021, Algorithm 1; what has not arrived yet counts as the first model
(`fallback = "first"`, as in the authors' training code) or as one's own (`fallback = "own"`).
Deviations: with `within_s`, a message that was not heard in time is replaced by the last one from there. One tree, not
two. The topology must be a tree (`chain`, `binary_tree`, `star`): elsewhere models would go round, which is refused
when the counts show it.
Sends one model and one count, another to each neighbour. State: the last message of each neighbour, momentum.
Status: checked (exact mean on trees; exact on unlike quadratics; with 10 % loss; accuracies were not repeated).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from tierline.core.arrays import Params
from tierline.core.errors import ConfigError
from tierline.core.types import NodeId
from tierline.learning.effects import Effects, Message, exchange, gradient, number, params
from tierline.learning.gossip._local import Local
from tierline.learning.gossip._mixing import like
from tierline.learning.rule import NodeInfo, State, Traits, Turn


class Peer(Local):
    """Keeps what each neighbour relayed last: the sum of `count` models."""

    kept = ("x", "m", "first")

    def __init__(
        self,
        *,
        fallback: Literal["first", "own"] = "first",
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        within_s: float | None = None,
    ) -> None:
        super().__init__(momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
        if fallback not in ("first", "own"):
            raise ConfigError(f'relay: fallback = {fallback!r}; valid: "first", "own"')
        self._own, self._within_s = fallback == "own", within_s
        self.traits = Traits(tolerates_loss=within_s is not None, per_edge_state=True, conserves=None, directed=False)

    def start(self, x: Params, node: NodeInfo) -> None:
        super().start(x, node)
        self.first = x.copy()
        self._heard: dict[NodeId, tuple[Params, int]] = {}

    def turn(self, t: Turn) -> Effects[None]:
        g = yield from gradient(self.x, t.batch)
        x = self.x - t.lr * self.direction(self.x, g.values)
        out: dict[NodeId, Message] = {}
        for j in t.peers_out:
            total, count = _summed(x, {k: heard for k, heard in self._heard.items() if k != j})
            out[j] = {"sum": total.astype(np.float32), "count": count}
        got = yield from exchange("relay", out, t.peers_in, within_s=self._within_s)
        for j, message in got.items():
            self._heard[j] = (params(message, "sum", x).copy(), int(number(message, "count")))
        total, count = _summed(x, self._heard)
        if count > t.num_nodes:
            raise ConfigError(
                f"relay: {count} models arrived where there are {t.num_nodes} nodes: the topology has a circle; "
                'choose a tree, such as "chain" or "binary_tree"'
            )
        absent = x if self._own else self.first
        self.x = like(x, (total + (t.num_nodes - count) * absent.flat.astype(np.float64)) / t.num_nodes)

    def state(self) -> State:
        heard = {f"sum/{j}": total.flat.copy() for j, (total, _) in self._heard.items()}
        counts = {f"count/{j}": count for j, (_, count) in self._heard.items()}
        return {**super().state(), **heard, **counts}

    def load(self, state: State) -> None:
        super().load(state)
        names = [NodeId(name.removeprefix("count/")) for name in state if name.startswith("count/")]
        self._heard = {j: (params(state, f"sum/{j}", self.x).copy(), int(number(state, f"count/{j}"))) for j in names}


def _summed(x: Params, heard: Mapping[NodeId, tuple[Params, int]]) -> tuple[np.ndarray, int]:
    """Sum of x and of what was relayed, float64, and how many models it holds."""
    total, count = x.flat.astype(np.float64), 1
    for j in sorted(heard):
        relayed, number_of = heard[j]
        total += relayed.flat
        count += number_of
    return total, count
