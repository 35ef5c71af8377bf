"""Who was waited for in vain: what still comes from there is late, and dropped by name."""

from __future__ import annotations

from collections.abc import Iterable

from tierline.core.types import NodeId
from tierline.learning.driver._arrivals import Name

_MAX_KEPT = 256
"""Waits; of older ones nothing is told."""


class Missed:
    """Of the waits of one node that time decides."""

    def __init__(self) -> None:
        self._missing: dict[Name, set[NodeId]] = {}

    def expect(self, name: Name, nodes: Iterable[NodeId]) -> None:
        """Waits of one name wait for one message of each."""
        self._missing.setdefault(name, set()).update(nodes)
        while len(self._missing) > _MAX_KEPT:
            del self._missing[next(iter(self._missing))]

    def heard(self, name: Name, nodes: Iterable[NodeId]) -> None:
        if name in self._missing:
            self._missing[name].difference_update(nodes)

    def is_late(self, name: Name, sender: NodeId) -> bool:
        """Something has come for a turn that is over: was it missed there? Asked again: no."""
        missing = self._missing.get(name, set())
        if sender not in missing:
            return False
        missing.discard(sender)
        return True
