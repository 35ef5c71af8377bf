"""The way to the parent as it is now: its round trip and its rate, while a Plan was chosen for a range of them.

Samples tell the rate where they fill the link (`link.rate`). Where they leave gaps, nothing that is idle is counted:
short trains are sent now and then instead, whose bytes are counted at the other end from the first message on. Behind
samples that fill the link a ping waits in their queue, so then it says nothing about the length of the way.
"""

from __future__ import annotations

import asyncio
from collections import deque
from statistics import median
from typing import Any, Protocol

from tierline.core.errors import TierlineError
from tierline.core.flow.node import Node

EVERY_S = 10.0
NUM_KEPT = 3
"""Soundings that make a value: of round trips the shortest, of rates the median."""


class Sounder(Protocol):
    """What sounding needs of the way up."""

    async def sound(self, known_bps: float) -> tuple[int, float]:
        """Round trip in nanoseconds and bits per second up. Raises TierlineError."""
        ...


class Sounding:
    """One per node; at the root it does nothing."""

    def __init__(self, node: Node, every_s: float = EVERY_S) -> None:
        self.parent: Sounder | None = None
        """Set by who dials one."""
        self._node, self._every_s = node, every_s
        self._trips_ms: deque[float] = deque(maxlen=NUM_KEPT)
        self._up_mbps: deque[float] = deque(maxlen=NUM_KEPT)

    async def run(self) -> None:
        """Until cancelled."""
        while self.parent is not None:
            await asyncio.sleep(self._every_s)
            if self._is_wanted():
                await self.sound(self.parent)

    async def sound(self, parent: Sounder) -> None:
        """Once; where the link fails meanwhile, nothing is noted."""
        link = self._node.parent
        assert link is not None  # whoever has a Sounder has a link
        known_bps, _ = link.sent_bps()
        try:
            rtt_ns, up_bps = await parent.sound(known_bps)
        except TierlineError:
            return
        if not known_bps and not link.sent_bps()[0]:
            self._trips_ms.append(rtt_ns / 1e6)
            self._up_mbps.append(up_bps / 1e6)

    def record(self) -> dict[str, Any]:
        """`rtt_ms` and `up_mbps` where they are known, as JSON values."""
        link = self._node.parent
        if link is None or not link.is_up:
            return {}
        known_bps, _ = link.sent_bps()
        if known_bps:
            self._trips_ms.clear()  # the way may be another by the time samples leave gaps again
            self._up_mbps.clear()
            return {"up_mbps": round(known_bps / 1e6, 4), "up_from": "payloads"}
        if not self._up_mbps or not self._is_wanted():
            return {}
        rtt_ms, up_mbps = round(min(self._trips_ms), 3), round(median(self._up_mbps), 4)
        return {"rtt_ms": rtt_ms, "up_mbps": up_mbps, "up_from": "probe"}

    def _is_wanted(self) -> bool:
        plan, link = self._node.plan, self._node.parent
        names = (f"rtt_ms:{self._node.id}", f"up_mbps:{self._node.id}")
        return plan is not None and link is not None and link.is_up and any(name in plan.valid for name in names)
