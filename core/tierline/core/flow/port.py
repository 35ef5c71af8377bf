"""What the sans-IO half of a node asks of the half that does I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tierline.core.flow.journey import Memory
from tierline.core.flow.levels import Levels
from tierline.core.link.messages import Body
from tierline.core.plan import Placement
from tierline.core.protocols import Clock, Outcome
from tierline.core.types import Array, Arrays

Done = Callable[[Arrays, int], None]
"""Takes a Section's outputs and how long the engine ran, in nanoseconds. Empty outputs: the engine failed."""


class Port(Protocol):
    """Links, engines and sinks, as the flow sees them. Nothing here blocks."""

    def to_child(self, child: str, body: Body) -> bool:
        """False where the child is not connected."""
        ...

    def to_parent(self, body: Body) -> bool:
        """False where the parent is not connected."""
        ...

    def parent_is_up(self) -> bool: ...

    def parent_rtt_ns(self) -> int:
        """Smoothed time until the parent acknowledges; 0 until known."""
        ...

    def parent_is_congested(self) -> bool:
        """Whether messages wait at the parent already."""
        ...

    def outcome(self, outcome: Outcome) -> None:
        """The one answer of a view that this node hosts."""
        ...

    def answered(self, exit_name: str, residence_ns: int, queue_ns: int) -> None:
        """A part was answered here: for metrics."""
        ...

    def run_now(self, level: int, part: str, x_B: Array) -> tuple[Arrays, int] | None:
        """Run a Section here: its outputs and duration as `Done` takes them. None where that would take long."""
        ...

    def run(self, level: int, part: str, x_B: Array, done: Done) -> None:
        """Run a Section, here and now or on a worker thread, then call `done` on the event loop."""
        ...


@dataclass(frozen=True, slots=True)
class Site:
    """Where a flow is: what all its parts share."""

    node: str
    placement: Placement
    levels: Levels
    port: Port
    clock: Clock
    memory: Memory
    """The node's, where a flow under another Plan came before or will follow."""
