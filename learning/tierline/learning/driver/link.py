"""Runs the rule of one node over letters: the same effects as in memory, carried out between processes. No I/O but the
journal's, no clock: letters and the time are handed in, letters and notes handed out.

A letter is journalled before it leaves and offered again until its receiver has finished the turn that it belongs to.
A turn that is taken again after a restart hears what it heard, and what it had written leaves word for word.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from tierline.core.arrays import Params
from tierline.core.errors import BadFrame, CodecError, NodeFailed, PeerRejected, ShapeMismatch, TierlineError
from tierline.core.link.learning_wire import content_from_bytes
from tierline.core.link.letters import Content, Declined, Head, Letter, Note, Part, Settled
from tierline.core.types import Arrays, NodeId
from tierline.learning.compute import Compute, Job, loss_of
from tierline.learning.driver._arrivals import Arrivals
from tierline.learning.driver._gather import Gather, check_total
from tierline.learning.driver._late import Missed
from tierline.learning.driver._near import Near, is_directed, seat
from tierline.learning.driver._outbox import Outbox
from tierline.learning.driver._peer import Mark, Peer, Running, Step, Wait, WaitForSum
from tierline.learning.driver._step import is_timed, open_exchange, open_reduce, place_of, turn_of
from tierline.learning.driver.journal import Journal, Report, Saved
from tierline.learning.effects import Exchange, Inbox, Message, Reduce, Reduced
from tierline.learning.errors import RuleError
from tierline.learning.fixed import contribution
from tierline.learning.rule import Rule, Trainer

LOG = logging.getLogger("tierline.learning")

REPORT, MODEL = "report", "model"
"""Names in the content of a report: its document as JSON, and the flat model."""

MONITOR = NodeId("monitor")
"""Receives the reports of all nodes of a fleet; it is no node of the run."""

_ROUND_BITS = 20
"""A node writes fewer than 2^20 letters a turn."""


@dataclass(frozen=True, slots=True)
class Task:
    """What all nodes of a run agree on."""

    run: str
    """Names the run in letters and journals."""
    draws: str
    """Names it in the rules' draws: runs of the same draws go the same way."""
    near: Mapping[NodeId, tuple[Near, ...]]
    lr: Callable[[int], float]
    job: Job = field(default_factory=Job)
    batches: Callable[[NodeId, int], Arrays] = lambda node, round: {}
    max_weight: float = float("inf")
    """Of one member of a sum: how many samples a worker may claim."""
    shows_model: Callable[[NodeId, int], bool] = lambda node, round: False
    """Whether a node's model after so many rounds is kept in its reports."""
    reports: bool = False
    """Whether reports are sent to the MONITOR too, as letters."""


class _Waiting:
    """Stands for an answer that is not there yet."""


_WAITING = _Waiting()


class LinkNode:
    """One node of a run. After each call, `compute` holds what the Trainer is asked next, if anything."""

    def __init__(
        self, me: NodeId, rule: Rule, trainer: Trainer | None, x: Params, task: Task, journal: Journal
    ) -> None:
        """Start `rule` from `x`, or from where the journal says that it stands. Raises ConfigError."""
        info = seat(me, task.near, rule, directed=is_directed(task.near))
        rule.start(x, info)
        self.me, self.trainer = me, trainer
        self.num_bytes = x.flat.nbytes
        """Of the model."""
        self.compute: Compute | None = None
        self.post: Callable[[Letter], None] = lambda letter: None
        self.tell: Callable[[Note], None] = lambda note: None
        self._task, self._journal = task, journal
        self._peer = Peer(info, rule, trainer, task.near[me], 0)
        self._cursors: dict[tuple[str, NodeId], Mark] = {}
        self._arrivals, self._missed, self._num_late = Arrivals(), Missed(), 0
        next_seq = 1
        saved = journal.saved(me)
        if saved is not None:
            rule.load(saved.state)
            self._peer.round, self._peer.num_resyncs, next_seq = saved.round, saved.num_resyncs, saved.next_seq
            self._cursors.update(saved.cursors)
            self._peer.newest.update(saved.cursors)
        self._is_new = saved is None
        self._outbox = Outbox(task.run, me, journal, next_seq, lambda letter: self.post(letter))
        self._held: dict[tuple[NodeId, int], Head] = {}
        """Letters taken, of turns that have not finished."""
        self._parts: dict[tuple[Step, str], list[tuple[Head, Part, int]]] = {}
        self._totals: dict[tuple[Step, str], Part] = {}
        self._begin_turn()

    def _begin_turn(self) -> None:
        self._num_waits = 0
        self._gather: Gather | None = None
        self._sum: Reduce | None = None
        self._number: int | None = None
        self._deadline_ns: int | None = None
        self._losses: list[tuple[float, int]] = []
        self._num_messages = self._num_bytes = 0

    @property
    def round(self) -> int:
        """Turns finished."""
        return self._peer.round

    @property
    def is_running(self) -> bool:
        return self._peer.running is not None

    @property
    def deadline_ns(self) -> int | None:
        """When `tick` will end a wait."""
        return self._gather.deadline_ns if self._gather is not None else self._deadline_ns

    def begin(self, now_ns: int) -> None:
        """Begin the next turn. Raises RuleError, or NodeFailed naming the node; so do the methods below."""
        peer, task = self._peer, self._task
        turn = turn_of(peer, task.draws, task.lr, task.batches, task.job)
        self._begin_turn()
        peer.running = Running(("turn", peer.round), peer.rule.turn(turn), peer.rule.state(), peer.near)
        self._go_on(None, now_ns)
        self._rejoin(now_ns)

    def _rejoin(self, now_ns: int) -> None:
        """A node whose journal was lost waits for what it had heard already: it goes on with the turn that the others
        are in. Raises NodeFailed where its rule would have to remember something."""
        round = self._peer.awaited_later() if self._is_new else None
        if round is None:
            return
        self._peer.give_up()
        if self._peer.rule.state():
            raise NodeFailed(
                f"{self.me}: the others are in turn {round} and need what this node remembered; its journal is lost, "
                "so start the run again"
            )
        LOG.warning("%s: no journal, but the run is in turn %d: goes on there", self.me, round)
        self._peer.round = round
        # Other numbers than those that letters had before the journal was lost.
        self._outbox.next_seq = max(self._outbox.next_seq, round << _ROUND_BITS)
        self.begin(now_ns)

    def computed(self, answer: object, now_ns: int) -> None:
        """The Trainer's answer."""
        self.compute = None
        loss = loss_of(answer)
        if loss is not None:
            self._losses.append(loss)
        self._go_on(answer, now_ns)

    def tick(self, now_ns: int) -> None:
        """Time has passed: a wait may be over."""
        if self.deadline_ns is not None and now_ns >= self.deadline_ns:
            running = self._peer.running
            assert running is not None
            if self._gather is not None:
                self._go_on(self._close(self._gather), now_ns)
            elif isinstance(running.wait, Wait):
                self._go_on(self._end(running, running.wait), now_ns)

    def letter(self, letter: Letter, now_ns: int) -> None:
        """A letter for this node. One that cannot be used is declined by name; the turn goes on without it."""
        head = letter.head
        key = (head.sender, head.seq)
        if key in self._held:
            return
        self._arrivals.came(_name(head), head.sender, now_ns)
        if self._is_past(head):
            self._drop_if_late(head)
            self.tell(Settled(head.run, head.sender, self.me, (head.seq,)))
            return
        try:
            if head.sender not in self._task.near or head.sender == self.me:
                raise PeerRejected(f"{head.sender!r} is no node of this run")
            content = content_from_bytes(letter.content)
            if head.kind == "message":
                self._take_message(head, content)
            else:
                self._take_part(head, content, now_ns)
        except (BadFrame, CodecError, ShapeMismatch, PeerRejected) as error:
            self._decline(head, error)
            return
        self._held[key] = head
        self._look(now_ns)
        self._rejoin(now_ns)

    @property
    def unsettled(self) -> Mapping[int, Letter]:
        """Letters to be sent again to receivers that come back."""
        return self._outbox.unsettled

    def note(self, note: Note) -> None:
        """What became of letters of this node. Raises NodeFailed where one was declined."""
        self._outbox.note(note)

    def flush(self) -> None:
        """Write down which letters are settled; a commit does it anyway."""
        self._outbox.flush()

    def _drop_if_late(self, head: Head) -> None:
        """Of a turn that is over: an update that it went on without is named and counted, another has been used."""
        if self._missed.is_late(_name(head), head.sender):
            LOG.info("%s: %s came too late: dropped", self.me, head)
            self._num_late += 1

    def _decline(self, head: Head, error: TierlineError) -> None:
        LOG.warning("%s declines %s: %s", self.me, head, error)
        self.tell(Declined(head.run, head.sender, self.me, head.seq, error.code, str(error)))

    def _is_past(self, head: Head) -> bool:
        if head.mark is not None:
            return head.mark <= self._cursors.get((head.tag, head.sender), (-1, -1))
        return self._peer.is_past((head.step, head.round))

    def _take_message(self, head: Head, content: Content) -> None:
        if head.sender not in self._peer.info.peers_in:
            raise PeerRejected(f"no edge from {head.sender!r} in this topology")
        for name, array in content.arrays.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise BadFrame(f"{head}: {name!r} holds values that are not finite")
            array.flags.writeable = False
        message: Message = {**content.arrays, **content.numbers}
        self._peer.put((head.step, head.round), head.tag, head.sender, message, head.mark)

    def _take_part(self, head: Head, content: Content, now_ns: int) -> None:
        if content.part is None:
            raise BadFrame(f"{head}: holds no part of a sum")
        key = _name(head)
        if head.kind == "total":
            self._totals.setdefault(key, content.part)
        elif self._gather is not None and self._peer.running is not None and key == self._asked():
            self._gather.add(content.part, now_ns)
            self._arrivals.opened(key, self._gather.e.within_s, self._gather.first_ns, [head.sender])
        else:
            self._parts.setdefault(key, []).append((head, content.part, now_ns))

    def _asked(self) -> tuple[Step, str] | None:
        return (self._peer.running.step, self._sum.tag) if self._peer.running and self._sum else None

    def _look(self, now_ns: int) -> None:
        """Something has come: does it end the wait?"""
        running = self._peer.running
        if running is None or running.wait is None:
            return
        try:
            is_sum = isinstance(running.wait, WaitForSum)
            answer: object = self._sum_over() if is_sum else self._wait_over(running)
        except (BadFrame, ShapeMismatch) as error:
            raise NodeFailed(f"{self.me}, {running.step[0]} {running.step[1]}: {error.code}: {error}") from error
        if not isinstance(answer, _Waiting):
            self._go_on(answer, now_ns)

    def _go_on(self, value: object, now_ns: int) -> None:
        """Hand the rule its answer, and carry out what it asks, until it waits, computes, or is done."""
        running = self._peer.running
        assert running is not None
        where = f"{self.me}, {running.step[0]} {running.step[1]}"
        try:
            while not isinstance(value, _Waiting):
                running.wait, self._gather, self._sum, self._deadline_ns = None, None, None, None
                effect = running.generator.send(value)
                if isinstance(effect, Exchange):
                    value = self._exchange(running, effect, now_ns)
                elif isinstance(effect, Reduce):
                    value = self._reduce(running, effect, now_ns)
                elif not isinstance(effect, Compute):
                    raise RuleError(f"yielded a {type(effect).__name__}, which is no effect")
                elif self.trainer is None:
                    raise RuleError(f"asked for a {type(effect).__name__}, but this node has no Trainer")
                else:
                    self.compute = effect
                    return
        except StopIteration:
            self._commit(running)
        except RuleError as error:
            self._peer.give_up()
            raise RuleError(f"{where}: {error}") from error
        except Exception as error:
            self._peer.give_up()
            kind = error.code if isinstance(error, TierlineError) else type(error).__name__
            raise NodeFailed(f"{where}: {kind}: {error}") from error

    def _exchange(self, running: Running, e: Exchange, now_ns: int) -> Inbox | _Waiting:
        where = f"tag {e.tag!r}"
        wait, posts = open_exchange(running, e, where)
        contents = {id(p.message): _content(p.message) for p in posts}
        self._outbox.send(
            running.step, "message", e.tag, [(p.receiver, contents[id(p.message)], p.mark) for p in posts]
        )
        self._num_messages += len(posts)
        self._num_bytes += sum(post.num_bytes for post in posts)
        if not wait.expect:
            return {}
        if is_timed(e):
            if not e.stream:
                self._missed.expect((running.step, e.tag), e.expect)
            decided = self._decided(running)
            if decided is not None:
                wait.expect, wait.quorum = decided, len(decided)
            elif e.within_s is not None:
                self._deadline_ns = now_ns + (self._arrivals.within_ns(e.tag, e.within_s) or 0)
                wait.here.update(self._peer.arrived(running, wait))
                here = self._peer.came_before(running, wait)
                self._arrivals.opened((running.step, e.tag), e.within_s, now_ns, here)
        running.wait = wait
        return self._wait_over(running)

    def _wait_over(self, running: Running) -> Inbox | _Waiting:
        wait = running.wait
        assert isinstance(wait, Wait)
        wait.here.update(self._peer.arrived(running, wait))
        return self._end(running, wait) if len(wait.here) >= wait.quorum else _WAITING

    def _end(self, running: Running, wait: Wait) -> Inbox:
        got = self._peer.take(running, wait)
        self._missed.heard((running.step, wait.tag), got)
        self._note_decision(running, got)
        return got

    def _reduce(self, running: Running, e: Reduce, now_ns: int) -> Reduced | _Waiting | None:
        open_reduce(self._peer, running, e, f"sum {e.tag!r}")
        part: Part | None = None
        if self.me in e.group:
            own = contribution(
                e.value, weight=e.weight, num_members=len(e.group), fraction_bits=e.fraction_bits, where=e.tag
            )
            group = tuple(sorted(e.group))
            part = Part(own.integers, own.weight_units, own.fraction_bits, (self.me,), group)
            self._num_messages += 1
            self._num_bytes += own.integers.nbytes + 8
        place = place_of(e, self._peer.info.nodes)
        if self.me != place:
            if part is not None:
                self._outbox.send(running.step, "part", e.tag, [(place, Content(part=part), None)])
            if self.me not in e.to:
                return None
        self._sum = e
        running.wait = WaitForSum(e.tag, e.group, set())
        if self.me == place:
            if not 1 <= (len(e.group) if e.quorum is None else e.quorum) <= len(e.group):
                raise RuleError(f"sum {e.tag!r}: a quorum of {e.quorum} out of {len(e.group)} members")
            decided = self._decided(running) if is_timed(e) else None
            self._missed.expect((running.step, e.tag), e.group)
            self._gather = gather = Gather(
                e, decided, self._task.max_weight, self._arrivals.within_ns(e.tag, e.within_s)
            )
            if part is not None:
                gather.add(part, now_ns)
            for head, early, arrived_ns in self._parts.pop((running.step, e.tag), []):
                try:
                    gather.add(early, arrived_ns)
                    self._arrivals.opened((running.step, e.tag), e.within_s, gather.first_ns)
                    self._arrivals.came((running.step, e.tag), head.sender, arrived_ns)
                except (BadFrame, ShapeMismatch) as error:
                    self._held.pop((head.sender, head.seq), None)
                    self._decline(head, error)
        return self._sum_over()

    def _sum_over(self) -> Reduced | _Waiting:
        if self._gather is not None:
            return self._close(self._gather) if self._gather.is_full else _WAITING
        assert self._sum is not None and self._peer.running is not None
        total = self._totals.get((self._peer.running.step, self._sum.tag))
        return _WAITING if total is None else check_total(total, self._sum)

    def _close(self, gather: Gather) -> Reduced:
        running, e = self._peer.running, gather.e
        assert running is not None
        result = gather.result()
        self._missed.heard((running.step, e.tag), result.members)
        self._note_decision(running, result.members)
        others = sorted(e.to - {self.me})
        if others:
            total = result.total
            content = Content(part=Part(total.integers, total.weight_units, total.fraction_bits, result.members))
            self._outbox.send(running.step, "total", e.tag, [(member, content, None) for member in others])
        return result

    def _decided(self, running: Running) -> frozenset[NodeId] | None:
        """Whom this wait heard when the turn was taken before; else it is numbered, to be noted when it ends."""
        number, self._num_waits = self._num_waits, self._num_waits + 1
        decided = self._journal.answer(self.me, running.step, number)
        self._number = number if decided is None else None
        return decided

    def _note_decision(self, running: Running, members: Iterable[NodeId]) -> None:
        if self._number is not None:
            self._journal.note_answer(self.me, running.step, self._number, members)
            self._number = None

    def _commit(self, running: Running) -> None:
        peer = self._peer
        document = {
            "losses": self._losses,
            "num_messages": self._num_messages,
            "num_bytes": self._num_bytes,
            "num_late": self._num_late,
        }
        is_turn = running.step[0] == "turn"
        flat = peer.rule.x.flat if self._task.shows_model(self.me, peer.round + is_turn) else None
        if self._task.reports and is_turn:
            # Before the commit: the turn that is taken again writes it again, word for word.
            arrays = {REPORT: np.frombuffer(json.dumps(document).encode(), np.uint8)}
            content = Content(arrays if flat is None else arrays | {MODEL: flat})
            self._outbox.send(running.step, "report", REPORT, [(MONITOR, content, None)])
        for tag, sender, mark in running.read:
            self._cursors[tag, sender] = max(mark, self._cursors.get((tag, sender), (-1, -1)))
        peer.finish()
        peer.compute_ns = 0
        model = None if flat is None or self._task.reports else flat.tobytes()
        saved = Saved(peer.round, peer.num_resyncs, self._outbox.next_seq, peer.rule.state(), self._cursors)
        self._journal.commit(self.me, saved, self._outbox.settled, Report(document, model))
        self._outbox.committed()
        self._is_new = self._is_new and not running.taken  # turns that hear nobody say nothing about where the run is
        self._num_late = 0
        self._parts = {key: parts for key, parts in self._parts.items() if not peer.is_past(key[0])}
        self._totals = {key: total for key, total in self._totals.items() if not peer.is_past(key[0])}
        done: dict[NodeId, list[int]] = {}
        for key, head in list(self._held.items()):
            if self._is_past(head):
                self._drop_if_late(head)
                done.setdefault(head.sender, []).append(head.seq)
                del self._held[key]
        for sender, seqs in sorted(done.items()):
            self.tell(Settled(self._task.run, sender, self.me, tuple(seqs)))


def _name(head: Head) -> tuple[Step, str]:
    """Of the wait that a letter is for."""
    return (head.step, head.round), head.tag


def _content(message: Message) -> Content:
    arrays = {name: value for name, value in message.items() if isinstance(value, np.ndarray)}
    numbers = {name: value for name, value in message.items() if not isinstance(value, np.ndarray)}
    return Content(arrays, numbers)
