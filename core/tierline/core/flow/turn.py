"""How a node goes from one Plan's structure to the next: what `residents` decides, carried out on the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tierline.core.bundle import Bundle
from tierline.core.errors import AdmissionRefused, EngineError, TierlineError
from tierline.core.flow.forward import Forwarder, Held
from tierline.core.flow.journey import PartRow
from tierline.core.flow.junction import Junction
from tierline.core.flow.levels import FEATURE, LOGITS
from tierline.core.flow.loaded import EngineSettings
from tierline.core.flow.resident import Resident
from tierline.core.flow.residents import Residents
from tierline.core.link import messages as m
from tierline.core.link.fleet import NodeState
from tierline.core.link.link import Link
from tierline.core.plan import Plan
from tierline.core.types import Arrays, NodeId, SampleId

if TYPE_CHECKING:
    from tierline.core.flow.node import Node

_log = logging.getLogger("tierline.plan")
LOOK_S = 0.01
"""How often a node that goes from one Plan to the next looks whether it is through."""
MAX_PARKED = 4096
"""Messages that wait during a pause; more are refused, and their senders answer alone."""


class Turn:
    """The two phases at one node. Owners call `prepare`, then `activate` or `discard`."""

    def __init__(self, node: Node, engine: EngineSettings) -> None:
        self.residents = Residents(node, engine)
        self.on_state: Callable[[], None] = lambda: None
        """Called whenever `state` has changed."""
        self.below_is_settled: Callable[[int], bool] = lambda version: True
        """Whether nothing older than this version is in flight at the nodes below."""
        self._node = node
        self._preparing: NodeState | None = None
        self._parked: list[tuple[Link, m.Part, int]] = []
        self._to_run: list[tuple[Resident, SampleId, Held]] = []
        self._resumed = asyncio.Event()
        self._look: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def state(self) -> NodeState:
        """Where this node stands."""
        residents = self.residents
        if self._preparing is not None:
            return self._preparing
        version = residents.plan.version if residents.plan is not None else 0
        if residents.failure:
            return NodeState(self._node.id, version, "failed", residents.failure)
        if residents.waiting is not None:
            return NodeState(self._node.id, version, "active", "paused: no memory for two Plans")
        return NodeState(self._node.id, version, "settled" if residents.is_single() else "active")

    # --- the two phases ---------------------------------------------------------------------------------------

    async def prepare(self, plan: Plan, bundle: Bundle) -> None:
        """Get ready to run this Plan, beside the one in force. Raises TierlineError, and what an engine's library
        raises, after which all is as before."""
        self.loading(plan.version)
        try:
            prepared = await self.residents.prepare(plan, bundle)
            if plan.join.by != "none":
                await self._until_all_can_run_again()
        except BaseException as error:
            self.residents.discard()
            if isinstance(error, Exception):
                self.failed(plan.version, error)
            raise
        note = "" if prepared.loaded is not None else "no memory for two Plans: samples will pause"
        self._tell(NodeState(self._node.id, plan.version, "ready", note))

    async def _until_all_can_run_again(self) -> None:
        """What was captured before images were kept could not be run again: it ends first."""
        flow = self._node.flow
        while isinstance(flow, Forwarder) and not flow.can_run_again():  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)

    def loading(self, version: int) -> None:
        """What a Plan needs is being fetched or loaded."""
        self._tell(NodeState(self._node.id, version, "loading"))

    def failed(self, version: int, error: Exception) -> None:
        """It could not be: the node goes on with the Plan in force."""
        _log.warning("plan %d cannot be prepared here: %s", version, error)
        self._tell(NodeState(self._node.id, version, "failed", str(error)))

    def discard(self) -> None:
        """The Plan that was prepared will not come."""
        self.residents.discard()
        self._tell(None)

    def activate(self, first_seq: int) -> int:
        """New samples are made under the prepared Plan. `first_seq`: where the parent's ids change hands; returned is
        where our own do, for the children."""
        node, old = self._node, self._node.flow
        ends: SampleId | None = None
        if isinstance(old, Junction) and old.placement.joins:
            own = [x.seq + 1 for x in self.residents.latest.values() if x[:2] == (node.id, node.epoch)]
            seq = max(old.next_seq(node.epoch), node.num_triggers, *own, 0)
            ends = old.ends = SampleId(NodeId(node.id), node.epoch, seq)
        elif old is not None and old.placement.views:
            ends = SampleId(*node.minter, first_seq)
        former = self.residents.activate(ends)
        node.welcome(self.residents.now)
        if self.residents.now is None:
            self._resumed.clear()
        else:
            self._resumed.set()
        if former is not None and isinstance(former.flow, Forwarder) and ends is not None:
            self._again(former, former.flow.withdraw(ends))
        self._tell(None)
        self._watch()
        node.schedule()
        return ends.seq if ends is not None else 0

    # --- during a pause ---------------------------------------------------------------------------------------

    async def resident_of(self, sample: SampleId) -> Resident:
        """Where a capture belongs, once it is loaded. Raises EngineError where loading failed."""
        while (found := self.residents.of_sample(sample)) is None:
            if self.residents.failure or self.residents.waiting is None:
                raise EngineError(f"{self._node.id}: {self.residents.failure or 'is being stopped'}")
            await self._resumed.wait()
        return found

    def park(self, link: Link, part: m.Part, arrived_ns: int) -> None:
        """Rows made under a Plan that is in force and not loaded yet."""
        if self.residents.failure or len(self._parked) >= MAX_PARKED:
            error = AdmissionRefused(self.residents.failure or f"{MAX_PARKED} messages wait for a pause to end")
            link.post(m.Refused(part.level, part.name, part.ids, error.code, str(error)))
            return
        self._parked.append((link, part, arrived_ns))

    # --- until it is over -------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Look again and again until the former Plan is gone, and the new one loaded."""
        self._look = None
        residents = self.residents
        went = residents.retire(self.below_is_settled)
        if not residents.is_single():
            self._look = asyncio.get_running_loop().call_later(LOOK_S, self._watch)
        elif residents.waiting is not None and not residents.failure:
            self._start(self._swap())
        elif went:
            _log.info("plan %d: nothing older is in flight", residents.plan.version if residents.plan else 0)
        if went:
            self.on_state()

    async def _swap(self) -> None:
        residents, node = self.residents, self._node
        try:
            await residents.swap()
        except Exception as error:
            residents.failure = residents.failure or str(error)
            _log.error("the Plan in force could not be loaded: %s; apply another one", error)
        node.welcome(residents.now)
        to_run, self._to_run = self._to_run, []
        for former, sample, held in to_run:
            if residents.now is not None:
                self._run_again(residents.now, former, sample, held)
            elif isinstance(former.flow, Forwarder):
                former.flow.failed(sample, held)
        parked, self._parked = self._parked, []
        for link, part, arrived_ns in parked:
            node.body(link, part, arrived_ns, 0)
        self._resumed.set()
        self.on_state()

    def _again(self, former: Resident, withdrawn: list[tuple[SampleId, Held]]) -> None:
        """Samples that were captured ahead of their Plan: run them under the one that they belong to. In order, and
        before anything newer of their views: a junction takes a view that goes back for one that has skipped samples.
        """
        for sample, held in withdrawn:
            resident = self.residents.of_sample(sample)
            if resident is None:
                self._to_run.append((former, sample, held))
            else:
                self._run_again(resident, former, sample, held)
        self._node.schedule()

    def _run_again(self, resident: Resident, former: Resident, sample: SampleId, held: Held) -> None:
        node, view = self._node, held.row.name

        def done(result: tuple[Arrays, list[int]], error: BaseException | None) -> None:
            try:
                if error is not None:
                    raise error
                resident.flow.local(view, sample, _with(held.row, *result), held.deadline_ns)
            except TierlineError as why:
                _log.warning("view %s, sample %s: %s", view, sample, why)
                assert isinstance(former.flow, Forwarder)
                former.flow.failed(sample, held)

        assert held.row.image is not None
        work = resident.view_job(view, held.row.image)
        if resident.runs_inline(view):
            result: tuple[Arrays, list[int]] = {}, []
            try:
                result = work()
            except TierlineError as raised:
                done(result, raised)
            else:
                done(result, None)
            return

        def ran(result: tuple[Arrays, list[int]], error: BaseException | None) -> None:
            resident.num_running -= 1
            done(result, error)
            node.pump()

        resident.num_running += 1
        node.worker.submit(work, ran)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _tell(self, preparing: NodeState | None) -> None:
        self._preparing = preparing
        self.on_state()

    def close(self) -> None:
        """Stop looking; what is in flight is answered by whoever closes the flows, what waits for a Section here."""
        for former, sample, held in self._to_run:
            if isinstance(former.flow, Forwarder):
                former.flow.failed(sample, held)
        self._to_run.clear()
        self.residents.waiting = None
        self._resumed.set()
        if self._look is not None:
            self._look.cancel()
        for task in self._tasks:
            task.cancel()


def _with(row: PartRow, part: Arrays, spans: list[int]) -> PartRow:
    """A part with the outputs of another Section; what the first one took was spent, too."""
    own = [spent + more for spent, more in zip(row.own_ns, spans, strict=True)]
    logits_K = part[LOGITS][0] if LOGITS in part else None
    feature = part[FEATURE][0] if FEATURE in part else None
    return replace(row, logits_K=logits_K, feature=feature, own_ns=tuple(own), image=None)
