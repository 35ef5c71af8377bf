"""Models on their way through a Compressor, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping

from tierline.core import catalog
from tierline.core.arrays import Params
from tierline.core.errors import ConfigError
from tierline.core.rng import Key
from tierline.core.types import Array, NodeId
from tierline.learning.compressor import Compressor
from tierline.learning.effects import Message
from tierline.learning.packing import packed, unpacked
from tierline.learning.rule import State, Turn


class Squeezer:
    """The compressor `name` of the catalogue, built with `options`. Raises ConfigError for one that cannot be used."""

    def __init__(self, rule: str, name: str, options: Mapping[str, object] | None) -> None:
        self._compressor: Compressor = catalog.make("compress", name, **dict(options or {}))
        if self._compressor.promise.needs_side or self._compressor.promise.takes_factors_only:
            raise ConfigError(f"{rule}: compressor = {name!r} does not take whole models; choose another")

    def squeeze(self, t: Turn, tag: str, x: Params, to: NodeId | None = None) -> tuple[Message, Params]:
        """The message for `x`, and what its receivers make of it. Without `to` it is the same for all of them."""
        message: dict[str, Array] = {}
        seen = x.zeros_like()
        for name, values in x.items():
            key = _key(t, tag, name, t.me, to)
            compressed = self._compressor.compress(key, values)
            seen[name][...] = self._compressor.expand(key, compressed)
            message[name] = packed(compressed)
        return message, seen

    def expand(
        self, t: Turn, tag: str, message: Message, sender: NodeId, like: Params, *, mine: bool = False
    ) -> Params:
        """What `sender` squeezed under this tag in this round; `mine`: for this node alone. Raises BadFrame."""
        seen = like.zeros_like()
        for name, values in seen.items():
            key = _key(t, tag, name, sender, t.me if mine else None)
            values[...] = self._compressor.expand(key, unpacked(message.get(name), values.shape))
        return seen

    def state(self) -> State:
        return self._compressor.state()

    def load(self, state: State) -> None:
        self._compressor.load(state)


def _key(t: Turn, tag: str, tensor: str, sender: NodeId, receiver: NodeId | None) -> Key:
    return Key(t.run, t.round, sender, receiver or "", f"{tag}/{tensor}")
