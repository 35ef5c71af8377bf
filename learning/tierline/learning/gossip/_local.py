"""What rules of this room have in common on one node: momentum of its own gradients, and parts with a state."""

from __future__ import annotations

from typing import ClassVar

from tierline.core.arrays import Params
from tierline.core.errors import ConfigError
from tierline.learning.half import Half
from tierline.learning.rule import NodeInfo, State


class Gossip(Half):
    """A Half whose attributes named in `parts` have a state and a load of their own: compressors, replicas."""

    parts: ClassVar[tuple[str, ...]] = ()

    def state(self) -> State:
        own = dict(super().state())
        for part in self.parts:
            own |= {f"{part}/{name}": value for name, value in getattr(self, part).state().items()}
        return own

    def load(self, state: State) -> None:
        super().load(state)
        for part in self.parts:
            head = f"{part}/"
            inner = {name[len(head) :]: value for name, value in state.items() if name.startswith(head)}
            getattr(self, part).load(inner)


class Local(Gossip):
    """Weight decay and momentum on one's own gradients.

    g <- g + weight_decay x;   m <- momentum m + g;   direction = m, or g + momentum m with `nesterov`
    """

    kept: ClassVar[tuple[str, ...]] = ("x", "m")

    def __init__(self, *, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0) -> None:
        check_share("momentum", momentum)
        if weight_decay < 0.0:
            raise ConfigError(f"gossip: weight_decay = {weight_decay} must be at least 0")
        self._momentum, self._nesterov, self._weight_decay = momentum, nesterov, weight_decay

    def start(self, x: Params, node: NodeInfo) -> None:
        super().start(x, node)
        self.m = x.zeros_like()

    def direction(self, at: Params, g: Params) -> Params:
        """What to step along; remembers the momentum. `at` is where the gradient was taken."""
        if self._weight_decay:
            g = g + self._weight_decay * at
        if not self._momentum:
            return g
        self.m = self._momentum * self.m + g
        return g + self._momentum * self.m if self._nesterov else self.m


def check_share(name: str, value: float) -> None:
    """Raises ConfigError unless `value` is in [0, 1)."""
    if not 0.0 <= value < 1.0:
        raise ConfigError(f"gossip: {name} = {value} must be at least 0 and below 1")


def check_positive(name: str, value: float) -> None:
    """Raises ConfigError unless `value` is above 0."""
    if not value > 0.0:
        raise ConfigError(f"gossip: {name} = {value} must be above 0")
