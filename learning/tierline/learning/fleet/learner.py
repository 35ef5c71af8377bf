"""What one process of a fleet does for learning: holds its nodes of the run, and passes on what is for others.

What is learned now is told from above, as a Notice; a run that was told before goes on from its journal. Inference does
not wait for any of it: Trainers compute on a thread of their own, and bulk is paced.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio

from tierline.core.errors import LinkUnavailable, TierlineError
from tierline.core.link.attach import Attachment, Context, attach, learning_handler
from tierline.core.link.dial import Backoff
from tierline.core.link.letters import Letter
from tierline.core.link.tasks import end
from tierline.core.protocols import Clock
from tierline.core.types import NodeId
from tierline.learning.driver.journal import Journal, remove_journal
from tierline.learning.driver.link import MONITOR, LinkNode
from tierline.learning.driver.office import Office
from tierline.learning.experiment.file import Setting
from tierline.learning.experiment.scene import Population, Scene, compose
from tierline.learning.fleet.job import NO_FOLDER, Job, Notice, notice_from_bytes, notice_to_bytes, one_line

LOG = logging.getLogger("tierline.learning")
T = TypeVar("T")

OpenPopulation = Callable[[Setting, int, Sequence[NodeId], Sequence[NodeId]], Population]
"""Setting, seed, all workers, and those that compute here. May read data for long; called on a thread."""


class Clerk(Protocol):
    """Who measures, at the root."""

    def opened(self, job: Job, stage: Scene) -> None:
        """A run begins here, or goes on; called on the event loop."""
        ...

    def report(self, job: Job, letter: Letter) -> None:
        """Raises BadFrame for one that cannot be used. Called on the nodes' thread where models are long."""
        ...


class Learner:
    """`folder` holds journals, or else a `database` by its URL. `covers(above, node)` says whether a node of the fleet
    is another or below it: a certificate speaks for these. Without a population this process only passes letters on."""

    def __init__(
        self,
        node: str,
        clock: Clock,
        folder: Path,
        *,
        covers: Callable[[str, str], bool],
        trainer: str = "",
        population: OpenPopulation | None = None,
        clerk: Clerk | None = None,
        database: str = "",
    ) -> None:
        self._node, self._clock, self._folder, self._covers = node, clock, folder, covers
        self._database = database
        self._trainer, self._population, self._clerk = trainer, population, clerk
        self._notice, self._document, self._told = Notice(), b"", asyncio.Event()
        self._office: Office | None = None
        self._opened, self._idle = asyncio.Event(), asyncio.Event()
        self._error = ""
        self._forgotten: set[str] = set()
        """Runs that have ended, and whose journals are gone."""

    # --- what is to be learned --------------------------------------------------------------------------------

    def take(self, document: bytes) -> None:
        """What the parent says is learned now."""
        if document == self._document:
            return
        try:
            notice = notice_from_bytes(document)
        except TierlineError as error:
            LOG.error("what is to be learned is not understood: %s", one_line(error))
            self._error = one_line(error)
            return
        self._notice, self._document = notice, document
        self._told.set()

    def jobs(self) -> bytes:
        """The same, for children; empty before anything was told."""
        return self._document

    def status(self) -> dict[str, Any]:
        """For this node's record in the status of the hierarchy."""
        job = self._notice.job
        return {"trainer": self._trainer, "job": job.id if job is not None else 0, "error": self._error}

    async def run(self) -> None:
        """Take part in whatever is told, until cancelled."""
        now: Job | None = None
        self._idle.set()
        task: asyncio.Task[None] | None = None
        try:
            while True:
                await self._told.wait()
                self._told.clear()
                if self._notice.job != now:
                    await end([task] if task is not None else [])
                    now, self._error = self._notice.job, ""
                    (self._idle.set if now is None else self._idle.clear)()
                    task = asyncio.create_task(self._take_part(now)) if now is not None else None
                for run in self._notice.ended:
                    await self._forget(run)
        finally:
            await end([task] if task is not None else [])

    async def idle(self) -> None:
        """Wait until the run that was under way has ended here."""
        await self._idle.wait()

    async def compute(self, call: Callable[[], T]) -> T:
        """Run something that uses the Trainers' model, when no Trainer does."""
        assert self._office is not None
        return await self._office.compute(call)

    # --- one run ----------------------------------------------------------------------------------------------

    async def _take_part(self, job: Job) -> None:
        async with contextlib.AsyncExitStack() as stack:
            try:
                await self._learn(job, stack)
            except TierlineError as error:
                self._error = one_line(error)
            except Exception as error:
                LOG.exception("job %d", job.id)
                self._error = one_line(error)
            if self._error:
                LOG.error("job %d does not go on here: %s", job.id, self._error)
            await asyncio.Event().wait()  # others may still need what was said, or something passed on

    async def _learn(self, job: Job, stack: contextlib.AsyncExitStack) -> None:
        here = [NodeId(me) for me, node in job.seats.items() if node == self._node]
        nodes: list[LinkNode] = []
        until: dict[NodeId, int | None] = {}
        if here or self._clerk is not None:
            stage = await asyncio.to_thread(self._stage, job, here)
            journal = await asyncio.to_thread(self._open_journal, job.run)
            stack.callback(journal.close)
            if self._clerk is not None:  # from here to the office without a pause: the clerk may ask for it at once
                self._clerk.opened(job, stage)
            until = {me: stage.until[me] for me in here}
            task, start = stage.task(job.run, job.experiment.measure, reports=True), stage.population.start
            nodes = [LinkNode(me, stage.rules[me], stage.trainers.get(me), start, task, journal) for me in here]
        clerk = self._clerk
        office = Office(
            job.run,
            [*map(NodeId, job.seats), MONITOR],
            nodes,
            self._clock,
            max_letter_bytes=job.max_letter_bytes,
            speaks_for=lambda identity, me: me in job.seats and self._covers(identity, job.seats[me]),
            report=None if clerk is None else lambda letter: clerk.report(job, letter),
            folder=self._folder,
            max_weight=job.setting.train.max_weight or math.inf,
        )
        stack.push_async_callback(asyncio.to_thread, office.close)
        stack.callback(self._close, office, job)
        self._office = office
        self._opened.set()
        if here:
            LOG.info("job %d: %s learns as %s", job.id, self._node, ", ".join(here))
        await office.run(until)
        await office.drained()

    def _stage(self, job: Job, here: Sequence[NodeId]) -> Scene:
        if self._population is None:
            raise TierlineError(f"node {self._node!r} was asked to learn, but has no [learn] trainer")
        open_population, setting = self._population, job.setting
        return compose(
            job.its_arm, setting, job.seed, NO_FOLDER, lambda workers: open_population(setting, job.seed, workers, here)
        )

    def _close(self, office: Office, job: Job) -> None:
        self._opened.clear()
        self._office = None
        office.end(LinkUnavailable(f"{self._node}: job {job.id} is not under way any more"))

    def _place(self, run: str) -> Path | str:
        """Of a run's journal."""
        return self._database or self._folder / f"{hashlib.sha256(run.encode()).hexdigest()[:16]}.sqlite"

    def _name(self, run: str) -> str:
        """Of a run's journal, among those of all nodes that share a database."""
        return f"{self._node}\0{run}"

    def _open_journal(self, run: str) -> Journal:
        return Journal(self._place(run), run, name=self._name(run))

    async def _forget(self, run: str) -> None:
        if run in self._forgotten:
            return
        try:
            await asyncio.to_thread(remove_journal, self._place(run), self._name(run))
        except TierlineError as error:
            LOG.error("the journal of run %r is not removed: %s", run, one_line(error))
            return
        self._forgotten.add(run)

    # --- streams ----------------------------------------------------------------------------------------------

    def handler(self, check: Callable[[Context], str | None]) -> grpc.GenericRpcHandler:
        """`Learning.Attach` for this node's server; `check` says who calls, and raises for whom is not let in."""
        return learning_handler(self._office_of, self._clock, check)

    def _office_of(self, run: str) -> Office:
        job = self._notice.job
        if self._office is None or job is None or job.run != run:
            raise LinkUnavailable(f"{self._node}: run {run!r} is not under way here")
        return self._office

    async def stay_attached(self, channel: grpc.aio.Channel, address: str) -> None:
        """While connected to the parent: a stream for every run that is under way, over the same channel."""
        backoff, attempt, rng = Backoff(), 0, random.Random(self._node)
        while True:
            await self._opened.wait()
            assert self._office is not None
            stream = Attachment(self._office, self._clock, is_child=False)
            attaching = asyncio.ensure_future(attach(channel, address, stream))
            try:
                await asyncio.wait((attaching,))  # a task of its own: that it is ended must not hide that we are
            finally:
                await end([attaching])
            error = attaching.exception() if not attaching.cancelled() else None
            if error is not None:
                LOG.info("%s; trying again", one_line(error))
            attempt = 0 if stream.was_up else attempt + 1
            await asyncio.sleep(backoff.wait_s(attempt, rng))


def notice_of(job: Job | None, ended: Sequence[str] = ()) -> bytes:
    return notice_to_bytes(Notice(job, tuple(ended)))
