"""Who writes a journal: at once, or on a thread of its own while the event loop goes on.

What must not leave before it is written waits for `then`; everything else need not wait, since a journal is written in
order: what a node does next stands behind what it does now.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from tierline.learning.driver.journal import Journal

Job = Callable[[], None]
"""Writes something into the journal."""


class Scribe(Protocol):
    def write(self, job: Job | None, then: Callable[[], None]) -> None:
        """Do a job after those before it, and call `then` when it is on the disk; without a job: when they are."""
        ...


class AtOnce:
    """Returns when it is written, and raises what the journal raises."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def write(self, job: Job | None, then: Callable[[], None]) -> None:
        if job is not None:
            with self._journal.together():
                job()
        then()


class Behind:
    """On a thread; `then` is called on the event loop. Jobs that wait at the same time become one transaction, which
    the disk confirms once. After an error, which `failed` takes, nothing is written any more."""

    def __init__(self, journal: Journal, failed: Callable[[Exception], None]) -> None:
        self._journal, self._failed = journal, failed
        self._pool = ThreadPoolExecutor(1, "journal")
        self._waiting: list[tuple[Job | None, Callable[[], None]]] = []
        self._is_busy = self._is_closed = False
        self._closing = threading.Lock()
        self._idle = asyncio.Event()
        self._idle.set()

    def write(self, job: Job | None, then: Callable[[], None]) -> None:
        if job is None and not self._is_busy:
            then()
            return
        self._waiting.append((job, then))
        if not self._is_busy:
            self._is_busy = True
            self._idle.clear()
            asyncio.get_running_loop().call_soon(self._begin)

    async def idle(self) -> None:
        """Wait until everything is on the disk."""
        await self._idle.wait()

    def close(self) -> None:
        """Wait for the thread; what it has not begun is never written. May be called on another thread."""
        with self._closing:
            self._is_closed = True
        self._pool.shutdown()

    def _begin(self) -> None:
        batch, self._waiting = self._waiting, []
        jobs = [job for job, _ in batch if job is not None]
        with self._closing:
            if self._is_closed:
                return
            done = asyncio.get_running_loop().run_in_executor(self._pool, self._write, jobs)
        done.add_done_callback(lambda done: self._written(done, [then for _, then in batch]))

    def _write(self, jobs: Sequence[Job]) -> None:
        with self._journal.together():
            for job in jobs:
                job()

    def _written(self, done: asyncio.Future[None], thens: Sequence[Callable[[], None]]) -> None:
        error = done.exception() if not done.cancelled() else None
        if done.cancelled() or error is not None:
            if isinstance(error, Exception):
                self._failed(error)
            self._idle.set()
            return  # still busy: nobody else begins
        if self._waiting:
            self._begin()
        else:
            self._is_busy = False
            self._idle.set()
        for then in thens:
            then()
