"""Local SGD: peers step on their own, and meet at the exact mean of their models now and then.

    x <- x - lr u;   every `every` turns  x <- mean over one's block;   every `every * blocks_every` turns  over all

Periodic: Stich, "Local SGD Converges Fast and Communicates Little", ICLR 2019. Post-local (`from_round`: before it, all
meet every turn) and hierarchical (`block` peers meet often, all of them rarely): Lin, Stich, Patel, Jaggi, "Don't Use
Large Mini-Batches, Use Local SGD", ICLR 2020. Momentum stays local and is not reset.
Deviations: blocks are consecutive peers in the order of the run. The forms that compress what is sent are left out. The
hierarchical form is from memory of the paper; no code of it was found.
Sends one model to a sum in each turn in which peers meet, none in others; edges of the topology are not used. State:
momentum.
Status: checked (every = 1 is synchronous SGD; messages fall by `every`); reconstructed (hierarchical).
"""

from __future__ import annotations

from tierline.core.arrays import Params
from tierline.core.errors import ConfigError
from tierline.learning.effects import Effects, gradient, reduce
from tierline.learning.gossip._local import Local
from tierline.learning.rule import Traits, Turn


class Peer(Local):
    """Without `block`, all meet every `every` turns and `blocks_every` is not read."""

    traits = Traits(tolerates_loss=False, per_edge_state=False, conserves="mean", directed=True)

    def __init__(
        self,
        *,
        every: int = 4,
        from_round: int = 0,
        block: int | None = None,
        blocks_every: int = 4,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
        for name, value in (("every", every), ("block", block), ("blocks_every", blocks_every)):
            if value is not None and value < 1:
                raise ConfigError(f"local_sgd: {name} = {value} must be at least 1")
        self._every, self._from_round, self._block, self._blocks_every = every, from_round, block, blocks_every

    def turn(self, t: Turn) -> Effects[None]:
        g = yield from gradient(self.x, t.batch)
        x = self.x - t.lr * self.direction(self.x, g.values)
        num_local = t.round - self._from_round + 1
        group = t.nodes
        if num_local > 0 and num_local % self._every:
            self.x = x
            return
        if num_local > 0 and self._block and num_local % (self._every * self._blocks_every):
            first = t.nodes.index(t.me) // self._block * self._block
            group = t.nodes[first : first + self._block]
        # Blocks make sums of their own, each under its first member's name.
        total = yield from reduce(f"x/{group[0]}/{len(group)}", x, group)
        self.x = Params(x.layout, total.mean.flat, buffers=x.buffers)
