"""What most strategies' halves have in common: remembering a few Params and numbers, and no neighbours."""

from __future__ import annotations

from typing import ClassVar

from tierline.core.arrays import Params
from tierline.learning.effects import Effects, number, params
from tierline.learning.rule import NodeInfo, State, Traits, Turn


class Half:
    """Start, state, load and resync of a rule that remembers the attributes named in `kept`: Params laid out like the
    model, whole numbers and fractions. A half that keeps `x` starts from a copy of its own."""

    traits: Traits = Traits(tolerates_loss=False, per_edge_state=False, conserves=None, directed=False)
    kept: ClassVar[tuple[str, ...]] = ()
    x: Params

    def start(self, x: Params, node: NodeInfo) -> None:
        self.x = x.copy() if "x" in self.kept else x

    def resync(self, t: Turn) -> Effects[None]:
        yield from ()

    def state(self) -> State:
        values = {name: getattr(self, name) for name in self.kept}
        return {name: value.flat.copy() if isinstance(value, Params) else value for name, value in values.items()}

    def load(self, state: State) -> None:
        for name in self.kept:
            old = getattr(self, name)
            if isinstance(old, Params):
                setattr(self, name, Params(old.layout, params(state, name, old).flat.copy(), buffers=old.buffers))
            else:
                setattr(self, name, type(old)(number(state, name)))
