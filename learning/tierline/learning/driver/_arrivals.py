"""When the messages of a node's waits came, for deadlines that adapt to it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from tierline.core.types import NodeId
from tierline.learning.driver._peer import Step
from tierline.learning.driver._time import to_ns
from tierline.learning.patience import Adaptive, Within

_MAX_DELAYS = 256
"""By tag, the newest: what a deadline is worked out from."""
_MAX_OPEN = 64
"""Waits whose late messages still count."""

Name = tuple[Step, str]
"""Step and tag of a wait."""


class Arrivals:
    """Delays from the start of a wait to each message; the first of each sender counts, before the start as 0."""

    def __init__(self) -> None:
        self._delays_ns: dict[str, deque[int]] = {}
        self._open: dict[Name, tuple[int, set[NodeId]]] = {}

    def opened(self, name: Name, within: Within, now_ns: int, here: Iterable[NodeId] = ()) -> None:
        """A wait begins, if it has not; `here` are those whose messages have come before. Only waits with an adaptive
        deadline are remembered."""
        if not isinstance(within, Adaptive) or name in self._open:
            return
        self._open[name] = now_ns, set()
        while len(self._open) > _MAX_OPEN:
            del self._open[next(iter(self._open))]
        for sender in here:
            self.came(name, sender, now_ns)

    def came(self, name: Name, sender: NodeId, now_ns: int) -> None:
        since_ns, senders = self._open.get(name, (0, None))
        if senders is not None and sender not in senders:
            senders.add(sender)
            delays = self._delays_ns.setdefault(name[1], deque(maxlen=_MAX_DELAYS))
            delays.append(max(0, now_ns - since_ns))

    def within_ns(self, tag: str, within: Within) -> int | None:
        """How long a wait that begins now goes on."""
        if isinstance(within, Adaptive):
            return to_ns(within.after_s([delay / 1e9 for delay in self._delays_ns.get(tag, ())]))
        return None if within is None else to_ns(within)
