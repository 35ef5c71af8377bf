"""Messages leave in order, one at a time, and the first at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from tierline.core.link.writer import Writer


class Pipe:
    """A write that waits until it is let through."""

    def __init__(self) -> None:
        self.waiting: deque[bytes] = deque()
        self.begun: list[bytes] = []
        self.failures: list[BaseException] = []
        self.gate: asyncio.Future[None] | None = None
        self.writer = Writer(self.write, self.next, self.failures.append)

    def next(self) -> bytes | None:
        return self.waiting.popleft() if self.waiting else None

    async def write(self, message: bytes) -> None:
        self.begun.append(message)
        self.gate = asyncio.get_running_loop().create_future()
        await self.gate

    def post(self, *messages: bytes) -> None:
        for message in messages:
            self.waiting.append(message)
            self.writer.kick()


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    unexpected: list[str] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unexpected.append(context["message"]))
        await main()

    asyncio.run(watched())
    assert not unexpected


def test_the_first_leaves_at_once_and_the_rest_one_by_one() -> None:
    async def main() -> None:
        pipe = Pipe()
        pipe.post(b"1", b"2", b"3")
        assert pipe.begun == [b"1"], "without a turn of the loop"
        for n in range(2, 4):
            assert pipe.gate is not None
            pipe.gate.set_result(None)
            await asyncio.sleep(0)
            assert len(pipe.begun) == n
        assert pipe.begun == [b"1", b"2", b"3"] and not pipe.failures

    run(main)


@pytest.mark.parametrize("pause", [None, lambda: asyncio.sleep(0)])
def test_a_write_that_does_not_wait_for_a_future(pause: Callable[[], Awaitable[None]] | None) -> None:
    async def main() -> None:
        waiting, written = deque([b"1", b"2"]), []

        async def write(message: bytes) -> None:
            if pause is not None:
                await pause()
            written.append(message)

        Writer(write, lambda: waiting.popleft() if waiting else None, pytest.fail).kick()
        for _ in range(6 if pause else 0):
            await asyncio.sleep(0)
        assert written == [b"1", b"2"]

    run(main)


def test_a_failure_is_told_once_and_ends_it() -> None:
    async def main() -> None:
        pipe = Pipe()
        pipe.post(b"1", b"2")
        assert pipe.gate is not None
        pipe.gate.set_exception(OSError("gone"))
        await asyncio.sleep(0)
        pipe.post(b"3")
        assert pipe.begun == [b"1"]
        assert [str(error) for error in pipe.failures] == ["gone"]

    run(main)


def test_a_message_that_cannot_be_made_is_a_failure_too() -> None:
    async def main() -> None:
        pipe = Pipe()
        wrong = ValueError("no such message")

        def fail() -> bytes | None:
            raise wrong

        pipe.writer = Writer(pipe.write, fail, pipe.failures.append)
        pipe.post(b"1")
        assert pipe.failures == [wrong]

    run(main)


def test_closing_abandons_what_is_under_way() -> None:
    async def main() -> None:
        pipe = Pipe()
        pipe.post(b"1", b"2")
        pipe.writer.close()
        assert pipe.gate is not None and pipe.gate.cancelled()
        await asyncio.sleep(0)
        pipe.post(b"3")
        assert pipe.begun == [b"1"] and not pipe.failures

    run(main)
