"""The driver's view of one node: its rule, the turn in progress, and the messages that wait for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tierline.core.link.letters import StepKind
from tierline.core.types import NodeId
from tierline.learning.driver._near import Near
from tierline.learning.effects import Effects, Inbox, Message
from tierline.learning.rule import NodeInfo, Rule, State, Trainer

Step = tuple[StepKind, int]
"""What a message belongs to: ("turn", round) or ("resync", how many there were before)."""

_MAX_NAMED = 16
"""Nodes that a Deadlock names."""

Mark = tuple[int, int]
"""Place of a message in a stream: the sender's round, and how many it had sent before in it."""


@dataclass(slots=True, eq=False)
class Wait:
    """An Exchange that has not ended."""

    tag: str
    expect: frozenset[NodeId]
    quorum: int
    stream: bool
    here: set[NodeId] = field(default_factory=set)
    """From whom something has arrived."""


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
    near: Near
    wait: Wait | WaitForSum | None = None
    posted: set[tuple[str, NodeId]] = field(default_factory=set)
    taken: set[tuple[str, NodeId]] = field(default_factory=set)
    summed: set[str] = field(default_factory=set)
    num_streamed: dict[tuple[str, NodeId], int] = field(default_factory=dict)
    num_waits: int = 0
    """Those that time decides, so far."""
    read: set[tuple[str, NodeId, Mark]] = field(default_factory=set)
    """Messages of streams that this turn has taken; gone for good when it finishes."""


@dataclass(slots=True, eq=False)
class Peer:
    """One node of the run. `inbox` keeps the messages of unfinished steps, in the order of arrival; a turn that is
    given up finds them again."""

    info: NodeInfo
    rule: Rule
    trainer: Trainer | None
    phases: tuple[Near, ...]
    compute_ns: int
    round: int = 0
    """Turns finished."""
    num_resyncs: int = 0
    running: Running | None = None
    inbox: dict[tuple[Step, str], dict[NodeId, Message]] = field(default_factory=dict)
    streams: dict[str, list[tuple[NodeId, Mark, Message]]] = field(default_factory=dict)
    """Unread messages by tag, in the order of arrival."""
    newest: dict[tuple[str, NodeId], Mark] = field(default_factory=dict)
    """Of each stream and sender; what comes again is known by it."""

    @property
    def near(self) -> Near:
        """Neighbours in this round."""
        return self.phases[self.round % len(self.phases)]

    def is_past(self, step: Step) -> bool:
        """This node has finished `step`."""
        kind, number = step
        return number < (self.round if kind == "turn" else self.num_resyncs)

    def finish(self) -> None:
        """The turn is done: count it and forget its messages."""
        assert self.running is not None
        for tag in {tag for tag, _, _ in self.running.read}:
            unread = [item for item in self.streams[tag] if (tag, item[0], item[1]) not in self.running.read]
            self.streams[tag] = unread
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

    def arrived(self, running: Running, wait: Wait) -> dict[NodeId, tuple[Mark, Message]]:
        """The messages that `wait` may take, one of each sender, in the order of arrival."""
        if not wait.stream:
            box = self.inbox.get((running.step, wait.tag), {})
            return {j: ((0, 0), message) for j, message in box.items() if j in wait.expect}
        oldest: dict[NodeId, tuple[Mark, Message]] = {}
        for j, mark, message in self.streams.get(wait.tag, ()):
            if j in wait.expect and (wait.tag, j, mark) not in running.read:
                oldest.setdefault(j, (mark, message))
        return oldest

    def awaited_later(self) -> int | None:
        """The first later turn whose message has come from a node that this turn waits for in vain: senders write one
        turn after the other, so what is waited for has been settled before, or was never written."""
        running = self.running
        if running is None or not isinstance(running.wait, Wait) or running.wait.stream:
            return None
        wait, (kind, now) = running.wait, running.step
        missing = wait.expect - self.arrived(running, wait).keys()
        later = [
            step[1]
            for (step, tag), box in self.inbox.items()
            if step[0] == kind == "turn" and step[1] > now and tag == wait.tag and missing & box.keys()
        ]
        return min(later, default=None)

    def came_before(self, running: Running, wait: Wait) -> set[NodeId]:
        """Whose messages a wait that begins has found, or earlier waits for the same tag have taken."""
        return wait.here | {sender for tag, sender in running.taken if tag == wait.tag}

    def take(self, running: Running, wait: Wait) -> Inbox:
        """The first messages of a wait, up to its quorum, by name of their sender."""
        here = self.arrived(running, wait)
        senders = list(here)[: wait.quorum]
        if wait.stream:
            running.read.update((wait.tag, j, here[j][0]) for j in senders)
        else:
            running.taken.update((wait.tag, j) for j in senders)
        return {j: here[j][1] for j in sorted(senders)}

    def put(
        self, step: Step, tag: str, sender: NodeId, message: Message, mark: Mark | None
    ) -> Literal["new", "again", "late"]:
        """Keep what arrived, if it is the first of its name; `mark` is its place in a stream."""
        if mark is not None:
            if mark <= self.newest.get((tag, sender), (-1, -1)):
                return "again"
            self.newest[tag, sender] = mark
            self.streams.setdefault(tag, []).append((sender, mark, message))
            return "new"
        if self.is_past(step):
            return "late"
        box = self.inbox.setdefault((step, tag), {})
        if sender in box:
            return "again"
        box[sender] = message
        return "new"


def who_waits(peers: Mapping[NodeId, Peer]) -> list[str]:
    """One line per node that waits, for whom and for what, then those awaited that do nothing."""
    lines: list[str] = []
    awaited: set[NodeId] = set()
    for me, peer in sorted(peers.items()):
        if peer.running is None or peer.running.wait is None:
            continue
        step, wait = peer.running.step, peer.running.wait
        if isinstance(wait, Wait):
            missing = wait.expect - wait.here
            what = f"{wait.tag!r} from"
        else:
            missing = wait.group - wait.members
            what = f"the sum {wait.tag!r} with"
        awaited |= missing
        lines.append(f"{me} in {step[0]} {step[1]} waits for {what} {', '.join(sorted(missing))}")
    idle = sorted(me for me in awaited if peers[me].running is None)
    if idle:
        lines.append(f"{', '.join(idle)} finished")
    return lines if len(lines) <= _MAX_NAMED else [*lines[:_MAX_NAMED], f"and {len(lines) - _MAX_NAMED} more"]
