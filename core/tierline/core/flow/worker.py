"""One thread beside the event loop, for Sections that take long.

An executor would cost each run a future of its own, a lock and two turns of the loop more than this queue does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

_T = TypeVar("_T")
_Job = tuple[asyncio.AbstractEventLoop, Callable[[], Any], Callable[[Any, BaseException | None], None]]


class Worker:
    """Runs one job after the other, in order. The thread starts with the first."""

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name=name, daemon=True)
        self._is_open = True

    def submit(self, job: Callable[[], _T], done: Callable[[_T, BaseException | None], None]) -> None:
        """Call `done(result, error)` on this event loop once the job has run; the result is None where it failed."""
        if not self._is_open:
            raise RuntimeError("the worker was closed")
        if self._thread.ident is None:
            self._thread.start()
        self._jobs.put((asyncio.get_running_loop(), job, done))

    async def run(self, job: Callable[[], _T]) -> _T:
        """The job's result, or its exception."""
        future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()

        def done(result: _T, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        self.submit(job, done)
        return await future

    def close(self) -> None:
        """Finish what was submitted, then end the thread."""
        self._is_open = False
        if self._thread.ident is not None:
            self._jobs.put(None)
            self._thread.join()

    def _work(self) -> None:
        while (entry := self._jobs.get()) is not None:
            loop, job, done = entry
            result, error = None, None
            try:
                result = job()
            except Exception as raised:
                error = raised
            try:
                loop.call_soon_threadsafe(done, result, error)
            except RuntimeError:  # the loop was closed: nobody waits any more
                continue
            finally:
                del entry, job, done, result, error  # or the last batch would live until the next
