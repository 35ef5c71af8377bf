"""Runs of learning rules over real streams on this machine: one office that listens, others that dial it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio

from tierline.core.arrays import Params
from tierline.core.clock import MonotonicClock
from tierline.core.link.attach import keep_attached, learning_handler
from tierline.core.link.dial import Backoff
from tierline.core.link.fleet import CHANNEL_OPTIONS
from tierline.core.types import NodeId
from tierline.learning.compute import Job
from tierline.learning.driver._near import phases
from tierline.learning.driver.journal import Journal, JournalReader
from tierline.learning.driver.link import LinkNode, Task
from tierline.learning.driver.office import Office
from tierline.learning.rule import Rule, State, Topology, Trainer

MAX_LETTER_BYTES = 64 << 20


def free_address() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{taken.getsockname()[1]}"


@dataclass
class Linked:
    """A run on several offices; each is started from its journal, and may be stopped and started again."""

    rules: Callable[[], Mapping[NodeId, Rule]]
    trainers: Mapping[NodeId, Trainer]
    topology: Topology
    x: Params
    folder: Path
    groups: Sequence[Sequence[NodeId]]
    """Nodes of each office; the first listens."""
    parents: dict[int, int] = field(default_factory=dict)
    """Which office an office dials, where that is not the first."""
    lr: float = 0.1
    job: Job = field(default_factory=Job)
    max_weight: float = float("inf")
    database: str = ""
    """URL of one for the journals, in place of files in `folder`."""
    addresses: dict[int, str] = field(default_factory=dict)

    @property
    def task(self) -> Task:
        near = phases(self.topology, tuple(self.rules()))
        return Task("job", "run", near, lambda round: self.lr, self.job, max_weight=self.max_weight)

    def address(self, index: int) -> str:
        """Where an office listens; the same after it was stopped."""
        return self.addresses.setdefault(index, free_address())

    @contextlib.asynccontextmanager
    async def office(self, index: int) -> AsyncIterator[Office]:
        clock, rules, task = MonotonicClock(), self.rules(), self.task
        journal = Journal(self.database or self.folder / f"{index}.sqlite", task.run, name=str(index))
        nodes = [LinkNode(me, rules[me], self.trainers.get(me), self.x, task, journal) for me in self.groups[index]]
        office = Office(task.run, rules, nodes, clock, max_letter_bytes=MAX_LETTER_BYTES, max_weight=task.max_weight)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(journal.close)
            stack.callback(office.close)
            parent = None if index == 0 else self.parents.get(index, 0)
            if index == 0 or index in self.parents.values():
                server = grpc.aio.server(options=CHANNEL_OPTIONS)
                server.add_generic_rpc_handlers((learning_handler(lambda run: office, clock),))
                server.add_insecure_port(self.address(index))
                await server.start()
                stack.push_async_callback(server.stop, None)
            if parent is not None:
                dialling = asyncio.create_task(
                    keep_attached(
                        self.address(parent),
                        office,
                        clock,
                        credentials=None,
                        rng=random.Random(index),
                        backoff=Backoff(0.01, 0.05),
                    )
                )
                stack.push_async_callback(_cancelled, dialling)
            yield office

    def until(self, rounds: int, index: int, *, of: Sequence[NodeId] | None = None) -> dict[NodeId, int | None]:
        return {me: rounds if of is None or me in of else None for me in self.groups[index]}

    async def run(self, rounds: int) -> None:
        """All offices, until all nodes have finished."""
        async with contextlib.AsyncExitStack() as stack:
            offices = [await stack.enter_async_context(self.office(i)) for i in range(len(self.groups))]
            await asyncio.gather(*(office.run(self.until(rounds, i)) for i, office in enumerate(offices)))

    def states(self) -> dict[NodeId, State]:
        found: dict[NodeId, State] = {}
        for index in range(len(self.groups)):
            reader = JournalReader(self.folder / f"{index}.sqlite")
            found |= reader.states()
            reader.close()
        return found


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
