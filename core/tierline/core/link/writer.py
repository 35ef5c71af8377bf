"""Writes messages of one stream, one after the other, from wherever they are made.

A writer task would cost each message a wake-up: a turn of the event loop before its first byte leaves. Here the
coroutine that writes is advanced by hand, at once and by whoever posts; where it has to wait, the future it waits for
calls back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

Write = Callable[[bytes], Awaitable[None]]


class Writer:
    """gRPC takes one write of a stream at a time: the next message is asked for when the last has left."""

    def __init__(
        self, write: Write, next_message: Callable[[], bytes | None], on_failure: Callable[[BaseException], None]
    ) -> None:
        """`next_message` gives None where nothing waits; `on_failure` hears why there will be no more writes."""
        self._write, self._next, self._on_failure = write, next_message, on_failure
        self._writing: Generator[Any, Any, None] | None = None
        self._awaited: asyncio.Future[Any] | None = None
        self._is_open = True

    def kick(self) -> None:
        """There is something to write."""
        if self._writing is None and self._is_open:
            self._advance()

    def close(self) -> None:
        """Write no more; what is on its way is left to gRPC."""
        self._is_open = False
        if self._writing is not None:
            self._writing.close()
            self._writing = None
        if self._awaited is not None:
            self._awaited.cancel()  # nobody will ask how it went

    def _advance(self, done: Any = None) -> None:
        try:
            awaited = self._until_it_waits() if self._is_open else None
        except (Exception, asyncio.CancelledError) as error:
            self._is_open, self._writing = False, None
            self._on_failure(error)
            return
        self._awaited = awaited
        if awaited is not None:
            awaited._asyncio_future_blocking = False  # what a task does with a future it is going to wait for
            awaited.add_done_callback(self._advance)

    def _until_it_waits(self) -> asyncio.Future[Any] | None:
        """Write on; the future that the write waits for, or None where all is written."""
        while True:
            if self._writing is None:
                message = self._next()
                if message is None:
                    return None
                self._writing = self._write(message).__await__()
            try:
                awaited: asyncio.Future[Any] | None = self._writing.send(None)
            except StopIteration:
                self._writing = None
                continue
            if awaited is None:  # a bare turn of the loop
                awaited = asyncio.get_running_loop().create_future()
                asyncio.get_running_loop().call_soon(_finish, awaited)
            return awaited


@contextmanager
def writing(write: Write, next_message: Callable[[], bytes | None]) -> Iterator[Writer]:
    """A Writer beside the task that reads the stream: where a write fails, that task's block ends with the error."""
    reader = asyncio.current_task()
    assert reader is not None
    failures: list[BaseException] = []

    def failed(error: BaseException) -> None:
        if not isinstance(error, asyncio.CancelledError):
            failures.append(error)
            reader.cancel()

    writer = Writer(write, next_message, failed)
    try:
        yield writer
    except asyncio.CancelledError:
        if failures:
            raise failures[0] from None
        raise
    finally:
        writer.close()


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
