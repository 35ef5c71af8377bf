"""The driver's view of one node: its rule, the turn in progress, and the messages that wait for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tierline.core.types import NodeId
from tierline.learning.effects import Effects, Inbox, Message
from tierline.learning.errors import RuleError
from tierline.learning.rule import NodeInfo, Rule, State, Trainer

Step = tuple[str, int]
"""What a message belongs to: ("turn", round) or ("resync", how many there were before)."""


@dataclass(slots=True, eq=False)
class Wait:
    """An Exchange that has not ended."""

    tag: str
    expect: frozenset[NodeId]
    quorum: int
    num_missing: int
    """How many more must arrive to reach the quorum."""


@dataclass(slots=True, eq=False)
class WaitForSum:
    """A Reduce that has not ended; `members` is the sum's own, and grows as contributions arrive."""

    tag: str
    group: frozenset[NodeId]
    members: set[NodeId]


@dataclass(slots=True, eq=False)
class Running:
    """A turn in progress. Effects answered after it was given up find that it is no longer the node's."""

    step: Step
    generator: Effects[None]
    before: State
    wait: Wait | WaitForSum | None = None
    posted: set[tuple[str, NodeId]] = field(default_factory=set)
    taken: set[tuple[str, NodeId]] = field(default_factory=set)
    summed: set[str] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class Peer:
    """One node of the run. `inbox` keeps the messages of unfinished steps, in the order of arrival; a turn that is
    given up finds them again."""

    info: NodeInfo
    rule: Rule
    trainer: Trainer
    w: Mapping[NodeId, float]
    compute_ns: int
    round: int = 0
    """Turns finished."""
    num_resyncs: int = 0
    running: Running | None = None
    inbox: dict[tuple[Step, str], dict[NodeId, Message]] = field(default_factory=dict)

    def is_past(self, step: Step) -> bool:
        """This node has finished `step`."""
        kind, number = step
        return number < (self.round if kind == "turn" else self.num_resyncs)

    def finish(self) -> None:
        """The turn is done: count it and forget its messages."""
        assert self.running is not None
        if self.running.step[0] == "turn":
            self.round += 1
        else:
            self.num_resyncs += 1
        self.running = None
        self.inbox = {key: got for key, got in self.inbox.items() if not self.is_past(key[0])}

    def give_up(self) -> None:
        """Go back to where the turn began; messages that it took are there again."""
        if self.running is None:
            return
        running, self.running = self.running, None
        running.generator.close()
        self.rule.load(running.before)

    def arrived(self, step: Step, tag: str, expect: frozenset[NodeId]) -> list[NodeId]:
        """Who of those expected has been heard, in the order of arrival."""
        return [j for j in self.inbox.get((step, tag), {}) if j in expect]

    def take(self, running: Running, wait: Wait) -> Inbox:
        """The first messages of a wait, up to its quorum, by name of their sender."""
        senders = self.arrived(running.step, wait.tag, wait.expect)[: wait.quorum]
        running.taken.update((wait.tag, j) for j in senders)
        return {j: self.inbox[running.step, wait.tag][j] for j in sorted(senders)}


def sealed(message: Message, where: str) -> tuple[Message, int]:
    """A read-only copy of a message, and how many bytes its values take. Raises RuleError for other values."""
    copy: dict[str, np.ndarray | int | float] = {}
    num_bytes = 0
    for name, value in message.items():
        if isinstance(value, np.ndarray):
            array = value.copy()
            array.flags.writeable = False
            copy[name] = array
            num_bytes += array.nbytes
        elif isinstance(value, int | float):
            copy[name] = value
            num_bytes += 8
        else:
            raise RuleError(f"{where}: {name!r} is a {type(value).__name__}; a message holds arrays and numbers")
    return copy, num_bytes
