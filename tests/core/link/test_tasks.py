from __future__ import annotations

import asyncio

import pytest

from tierline.core.link.tasks import together


async def waits(ended: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)
        ended.append("waits")


async def fails() -> None:
    raise ValueError("no")


async def number(n: int) -> int:
    for _ in range(3 - n):
        await asyncio.sleep(0)
    return n


def test_results_come_in_order() -> None:
    assert asyncio.run(together(number(n) for n in range(3))) == [0, 1, 2]


def test_an_error_ends_the_others_before_it_is_told() -> None:
    ended: list[str] = []

    async def main() -> None:
        with pytest.raises(ValueError, match="no"):
            await together([waits(ended), fails()])
        assert ended == ["waits"]

    asyncio.run(main())


def test_who_is_cancelled_ends_all_first() -> None:
    ended: list[str] = []

    async def main() -> None:
        task = asyncio.ensure_future(together([waits(ended)]))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == ["waits"]

    asyncio.run(main())
