"""One thread, one job after the other, results on the event loop."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Iterator

import pytest

from tierline.core.errors import EngineError
from tierline.core.flow.worker import Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker("test")
    yield made
    made.close()


def fail() -> int:
    raise EngineError("no such model")


def test_jobs_run_in_order_on_a_thread_of_their_own_and_end_on_the_loop(worker: Worker) -> None:
    async def main() -> None:
        ran: list[tuple[int, bool]] = []
        told: list[tuple[int, bool]] = []
        here = threading.current_thread()

        def job(n: int) -> int:
            ran.append((n, threading.current_thread() is here))
            return n

        for n in range(20):
            worker.submit(
                lambda n=n: job(n), lambda result, error: told.append((result, threading.current_thread() is here))
            )
        assert await worker.run(lambda: 7) == 7
        assert ran == [(n, False) for n in range(20)]
        assert told == [(n, True) for n in range(20)]

    asyncio.run(main())


def test_an_error_reaches_who_asked_and_nobody_else(worker: Worker) -> None:
    async def main() -> None:
        errors: list[BaseException | None] = []
        worker.submit(fail, lambda result, error: errors.append(error))
        with pytest.raises(EngineError, match="no such model"):
            await worker.run(fail)
        assert len(errors) == 1 and isinstance(errors[0], EngineError)
        assert await worker.run(lambda: 1) == 1, "the thread lives on"

    asyncio.run(main())


def test_who_no_longer_waits_does_not_disturb(worker: Worker) -> None:
    async def main() -> None:
        started, go = threading.Event(), threading.Event()

        def job() -> None:
            started.set()
            assert go.wait(5)

        task = asyncio.create_task(worker.run(job))
        await asyncio.sleep(0)
        assert started.wait(5)
        task.cancel()
        go.set()
        assert await worker.run(lambda: 2) == 2
        assert task.cancelled()

    asyncio.run(main())


def test_a_loop_that_has_ended_does_not_end_the_thread(worker: Worker) -> None:
    go = threading.Event()

    async def leave() -> None:
        worker.submit(lambda: go.wait(5), lambda result, error: None)

    async def stay() -> int:
        return await worker.run(lambda: 3)

    asyncio.run(leave())
    go.set()
    assert asyncio.run(stay()) == 3


def test_results_are_let_go(worker: Worker) -> None:
    """A batch is megabytes: the idle thread holds none."""

    class Batch:
        pass

    async def main() -> None:
        loop, gone = asyncio.get_running_loop(), asyncio.Event()
        reference = weakref.ref(await worker.run(Batch), lambda _: loop.call_soon_threadsafe(gone.set))
        await asyncio.wait_for(gone.wait(), 5)
        del reference

    asyncio.run(main())


def test_closing_finishes_what_was_asked_and_takes_no_more() -> None:
    async def main() -> None:
        worker, ran = Worker("test"), list[int]()
        for n in range(3):
            worker.submit(lambda n=n: ran.append(n), lambda result, error: None)
        worker.close()
        assert ran == [0, 1, 2]
        with pytest.raises(RuntimeError):
            worker.submit(lambda: None, lambda result, error: None)

    asyncio.run(main())


def test_closing_an_unused_worker() -> None:
    Worker("test").close()
