"""The learning nodes of one process and the streams that connect it: letters go to whom they are for, and nodes go on.

A process passes on what is for the nodes of others, and keeps nothing of it: a letter whose receiver is out of reach is
dropped here, and offered again by its sender once the receiver is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tierline.core.errors import BadFrame, PeerRejected, TierlineError
from tierline.core.link.attach import Attachment, is_of
from tierline.core.link.content_wire import who_adds
from tierline.core.link.intake import Intake
from tierline.core.link.letters import Declined, Letter, Note, Present, Settled
from tierline.core.link.tasks import together
from tierline.core.protocols import Clock
from tierline.core.types import NodeId
from tierline.learning.driver._compute import ask
from tierline.learning.driver._relay import HOLD_S, PreAdder
from tierline.learning.driver._scribe import Behind
from tierline.learning.driver.link import MONITOR, LinkNode

LOG = logging.getLogger("tierline.learning")
T = TypeVar("T")

_LONG_BYTES = 1 << 20
"""Nodes with models from this on go on in a thread of their own: adding them up, and bringing them to the disk, takes
longer than a sample may wait."""


class _FromThread:
    """A scribe as nodes may call it on their thread."""

    def __init__(self, office: Office, scribe: Behind) -> None:
        self._office, self._scribe = office, scribe

    def write(self, job: Callable[[], None] | None, then: Callable[[], None]) -> None:
        self._office.soon(functools.partial(self._scribe.write, job, then))


class Office:
    """The Desk of a process that learns, on one event loop. Trainers have one thread of their own, and so have nodes
    with long models; what they post comes back to the loop, and one call to a node follows another."""

    def __init__(
        self,
        run: str,
        members: Collection[NodeId],
        nodes: Iterable[LinkNode],
        clock: Clock,
        *,
        max_letter_bytes: int,
        speaks_for: Callable[[str, NodeId], bool] = is_of,
        report: Callable[[Letter], None] | None = None,
        folder: Path | None = None,
        max_weight: float = math.inf,
    ) -> None:
        """`members` are all nodes of the run, `nodes` those of this process. `report` takes letters to the MONITOR,
        where that is here, on the nodes' thread; it raises BadFrame for one that cannot be used. `folder` is for what
        memory shall not hold of letters that are coming in; `max_weight` is the job's."""
        self.max_letter_bytes, self.speaks_for, self._report = max_letter_bytes, speaks_for, report
        self.intake = Intake(folder)
        self._run, self._members, self._clock = run, frozenset(members), clock
        self._nodes = {node.me: node for node in nodes}
        self._wake = {me: asyncio.Event() for me in self._nodes}
        self._errors: dict[NodeId, Exception] = {}
        self._streams: list[Attachment] = []
        self._local: deque[tuple[NodeId, Callable[[LinkNode], None]]] = deque()
        self._adder = PreAdder(self._through, max_weight)
        self._pool = ThreadPoolExecutor(1, "trainer")
        is_long = any(node.num_bytes >= _LONG_BYTES for node in self._nodes.values())
        self._thread = ThreadPoolExecutor(1, "node") if is_long else None
        self._unkept: dict[int, Letter] = {}
        """By id: letters that go nowhere before they are kept."""
        self._scribes = {id(node.journal): Behind(node.journal, self._fail) for node in self._nodes.values()}
        for node in self._nodes.values():
            node.post, node.tell = self._on_loop(self._route), self._on_loop(self._return)
            node.kept = self._kept  # scribes call on the loop
            scribe = self._scribes[id(node.journal)]
            node.write_with(scribe if self._thread is None else _FromThread(self, scribe))

    async def run(self, until: Mapping[NodeId, int | None]) -> None:
        """Let every node take turns until it has finished so many; one with None goes on until cancelled. Raises what
        a node failed with."""
        self._loop = asyncio.get_running_loop()
        self._offer(self._nodes.keys())
        await together(self._drive(node, until[me]) for me, node in self._nodes.items())
        await self._written()

    async def drained(self) -> None:
        """Wait until nobody needs a letter of these nodes any more: then the process may end."""
        for me, node in self._nodes.items():
            while node.unsettled:
                self._check(node)
                self._wake[me].clear()
                await self._wake[me].wait()
            await self._have(node.flush)
        await self._written()

    async def compute(self, call: Callable[[], T]) -> T:
        """Run something on the Trainers' thread."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    def end(self, reason: TierlineError) -> None:
        """End all streams: the run is over, or not under way here any more."""
        for stream in list(self._streams):
            stream.end(reason)

    def close(self) -> None:
        """Wait for the threads."""
        self._pool.shutdown()
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        for scribe in self._scribes.values():
            scribe.close()

    async def _written(self) -> None:
        for scribe in self._scribes.values():
            await scribe.idle()
        for error in self._errors.values():
            raise error

    def _fail(self, error: Exception) -> None:
        """A journal cannot be written: nothing goes on here."""
        for me, wake in self._wake.items():
            self._errors.setdefault(me, error)
            wake.set()

    async def _drive(self, node: LinkNode, until: int | None) -> None:
        loop, wake = asyncio.get_running_loop(), self._wake[node.me]
        while until is None or node.round < until:
            await self._have(lambda: node.begin(self._clock.now_ns()))
            while node.is_running:
                self._check(node)
                if node.compute is not None and node.trainer is not None:
                    answer = await loop.run_in_executor(self._pool, ask, node.trainer, node.compute)
                    await self._have(functools.partial(node.computed, answer, self._clock.now_ns()))
                    continue
                wake.clear()
                deadline_ns = node.deadline_ns
                if deadline_ns is None:
                    await wake.wait()
                    continue
                timer = loop.call_later(max(0, deadline_ns - self._clock.now_ns()) / 1e9, wake.set)
                await wake.wait()
                timer.cancel()
                await self._have(lambda: node.tick(self._clock.now_ns()))
            await self._have(lambda: self._check(node))
        await self._have(node.flush)

    def _check(self, node: LinkNode) -> None:
        if node.me in self._errors:
            raise self._errors[node.me]

    async def _have(self, call: Callable[[], None]) -> None:
        """Have a node go on, after what it was handed before. Raises what it raises."""
        if self._thread is None:
            call()
        else:
            await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def _on_loop(self, call: Callable[[T], None]) -> Callable[[T], None]:
        """`call` as nodes may call it, which may be on their thread."""
        if self._thread is None:
            return call
        return lambda argument: self.soon(functools.partial(call, argument))

    def soon(self, call: Callable[[], None]) -> None:
        """On the loop, from the nodes' thread."""
        self._loop.call_soon_threadsafe(call)

    def attached(self, stream: Attachment) -> None:
        self._streams.append(stream)
        stream.tell(self._presence(stream))

    def detached(self, stream: Attachment) -> None:
        self._streams.remove(stream)
        gone, stream.present = stream.present, ()
        if gone:
            self._announce(stream)

    def present(self, stream: Attachment, before: frozenset[NodeId]) -> None:
        """Nodes come and go; who came is offered what waits for them. A node has one stream, the newest."""
        strangers = [node for node in stream.present if node not in self._members]
        if strangers and stream.is_child:
            raise PeerRejected(f"run {self._run!r} has no node {strangers[0]!r}")
        here = frozenset(stream.present)
        older = [s for s in self._streams if s is not stream and s.is_child and here & set(s.present)]
        if older and stream.is_child:
            for other in older:
                other.present = tuple(node for node in other.present if node not in here)
            # Others must see them go and come, since what was under way to them may be lost.
            there, stream.present = stream.present, ()
            self._announce(stream)
            stream.present = there
        self._announce(stream)
        self._offer(here - before)

    def _offer(self, receivers: Collection[NodeId]) -> None:
        """Send what waits for these nodes; they know what they have had already."""
        for node in self._nodes.values():
            for _, letter in sorted(dict(node.unsettled).items()):  # a copy: its thread may go on meanwhile
                if letter.head.receiver in receivers:
                    self._route(letter)

    def letter(self, stream: Attachment, letter: Letter) -> None:
        head = letter.head
        if stream.is_child and head.sender not in stream.present:
            raise BadFrame(f"{head}: its sender is none of the nodes of this stream")
        if head.run != self._run or head.receiver not in self._members:
            what = f"no run {head.run!r} is under way here" if head.run != self._run else "no such receiver in this run"
            LOG.warning("%s: declined: %s", head, what)
            stream.tell(Declined(head.run, head.sender, head.receiver, head.seq, PeerRejected.code, what))
            return
        if head.kind == "part" and stream.is_child and stream.identity is not None:
            strangers = set(who_adds(letter.content)[0]) - set(stream.present)
            if strangers:
                raise BadFrame(f"{head}: a part of {min(strangers)!r}, which is none of the nodes of this stream")
        self._route(letter)

    def note(self, stream: Attachment, note: Note) -> None:
        if stream.is_child and note.receiver not in stream.present:
            raise BadFrame(f"a note of {note.receiver!r}, which is none of the nodes of this stream")
        self._return(note)

    def _route(self, letter: Letter) -> None:
        receiver = letter.head.receiver
        is_here = receiver in self._nodes or (receiver == MONITOR and self._report is not None)
        is_added = letter.head.kind == "part" and not self._adder.goes_alone(letter)
        if not letter.is_kept and (is_here or is_added):
            self._unkept[id(letter)] = letter
            return
        if receiver == MONITOR and self._report is not None:
            self._take_report(letter, self._report)
            return
        if receiver in self._nodes:
            self._hand(receiver, lambda node: node.letter(letter, self._clock.now_ns()))
            return
        if letter.head.kind == "part":
            self._pass_on(self._adder.take(letter))
            loop = asyncio.get_running_loop()
            loop.call_later(HOLD_S, lambda: self._pass_on(self._adder.release(letter.head)))
        else:
            self._pass_on([letter])

    def _kept(self, letter: Letter) -> None:
        if self._unkept.pop(id(letter), None) is not None:
            self._route(letter)
        else:
            for stream in self._streams:
                stream.kept()

    def _take_report(self, letter: Letter, report: Callable[[Letter], None]) -> None:
        """On the nodes' thread where there is one: it may hold a model."""

        def taken() -> Note:
            head = letter.head
            try:
                report(letter)
            except TierlineError as error:
                LOG.warning("%s: declined: %s", head, error)
                return Declined(head.run, head.sender, MONITOR, head.seq, error.code, str(error))
            return Settled(head.run, head.sender, MONITOR, (head.seq,))

        if self._thread is None:
            self._give_back(taken())
            return
        with contextlib.suppress(RuntimeError):  # closed meanwhile
            done = asyncio.get_running_loop().run_in_executor(self._thread, taken)
            done.add_done_callback(lambda done: None if done.cancelled() else self._give_back(done.result()))

    def _pass_on(self, letters: Iterable[Letter]) -> None:
        for letter in letters:
            stream = self._stream_of(letter.head.receiver)
            if stream is not None:
                stream.post(letter)

    def _return(self, note: Note) -> None:
        notes, letters = self._adder.note(note)
        self._pass_on(letters)
        for each in notes:
            self._give_back(each)

    def _give_back(self, note: Note) -> None:
        if note.sender in self._nodes:
            self._hand(note.sender, lambda node: node.note(note))
            return
        stream = self._stream_of(note.sender)
        if stream is not None:
            stream.tell(note)

    def _hand(self, me: NodeId, call: Callable[[LinkNode], None]) -> None:
        """On the node's thread; without one in a turn of the loop of its own: the node may be in the middle of
        something."""
        if self._thread is not None:
            self._loop = asyncio.get_running_loop()
            with contextlib.suppress(RuntimeError):  # closed meanwhile
                done = self._loop.run_in_executor(self._thread, self._go_on, me, call)
                self.intake.hold()
                done.add_done_callback(lambda _: self._done(me))
            return
        if not self._local:
            asyncio.get_running_loop().call_soon(self._deliver)
        self._local.append((me, call))

    def _deliver(self) -> None:
        for _ in range(len(self._local)):
            me, call = self._local[0]
            try:
                self._go_on(me, call)
            finally:
                self._local.popleft()
            self._wake[me].set()
        if self._local:
            asyncio.get_running_loop().call_soon(self._deliver)

    def _done(self, me: NodeId) -> None:
        self.intake.release()
        self._wake[me].set()

    def _go_on(self, me: NodeId, call: Callable[[LinkNode], None]) -> None:
        try:
            if me not in self._errors:
                call(self._nodes[me])
        except Exception as error:  # raised again where the node is driven
            self._errors[me] = error

    def _stream_of(self, node: NodeId) -> Attachment | None:
        return next((s for s in reversed(self._streams) if node in s.present), None)

    def _through(self, receiver: NodeId) -> frozenset[NodeId]:
        """Nodes whose letters to a receiver elsewhere come through here."""
        onward = self._stream_of(receiver)
        below = {node for s in self._streams if s is not onward and s.is_child for node in s.present}
        return frozenset(below | set(self._nodes))

    def _presence(self, stream: Attachment) -> Present:
        """Whom the peer of a stream can reach through here."""
        others = {node for s in self._streams if s is not stream for node in s.present}
        here = set(self._nodes) if self._report is None else {*self._nodes, MONITOR}
        return Present(tuple(sorted((others | here) - set(stream.present))), self._run)

    def _announce(self, about: Attachment) -> None:
        for stream in self._streams:
            if stream is not about:
                stream.tell(self._presence(stream))
