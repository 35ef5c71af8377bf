"""Plans of another structure where a node has no memory for two: on one event loop, over real sockets."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from in_process import World, check

from tierline.core.bundle import Bundle
from tierline.core.errors import EngineError, PlanError
from tierline.core.flow import residents
from tierline.core.link.ask import change_plan

HELD_BYTES = 100 << 20
"""What every node is made to believe that it holds already."""


@pytest.fixture(autouse=True)
def held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residents, "resident_bytes", lambda: HELD_BYTES)


def test_without_memory_for_two_samples_pause(tmp_path: Path, bundles: list[Bundle]) -> None:
    """The edge node and a device may hold one Plan only: what is new waits until what is older was answered."""
    a, _, c = bundles

    async def scenario() -> None:
        limits = {"edge": HELD_BYTES + (6 << 20), "device-left": HELD_BYTES + (1 << 20)}
        async with World(tmp_path, a, memory=limits) as world:
            await world.until_more(1)
            made = await world.apply(c)
            notes = made["switch"]["notes"]
            assert {note.partition(":")[0] for note in notes} == {"edge", "device-left"}
            assert all("samples will pause" in note for note in notes)
            await world.until_more(2)
            assert await world.plans() == {2}
            check(world.records(), {1: a, 2: c})

    asyncio.run(scenario())


def test_a_plan_that_cannot_be_loaded_after_the_pause_is_followed_by_another(
    tmp_path: Path, bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is committed, so there is no way back for it: the node says what is wrong, and waits for the next one."""
    a, _, c = bundles

    async def scenario() -> None:
        # Refused views run ahead of one another: let nobody wait long for them afterwards.
        join, limits = 'by = "sequence"\nwindow_ms = 50', {"edge": HELD_BYTES + (6 << 20)}
        async with World(tmp_path, a, join, memory=limits) as world:
            await world.until_more(1)
            edge = world.agents["edge"].node

            async def fail() -> None:
                raise EngineError("out of memory")

            with monkeypatch.context() as patch:
                patch.setattr(edge.residents, "swap", fail)
                await world.apply(c)
                await world.until("it failed", lambda: edge.turn.state().state == "failed")
            assert edge.turn.state().message == "out of memory" and edge.flow is None
            assert (await change_plan(world.cloud, rollback_to=1))["version"] == 3
            await world.until_more(3)

    asyncio.run(scenario())


def test_what_does_not_even_fit_alone_is_refused(tmp_path: Path, bundles: list[Bundle]) -> None:
    a, b, _ = bundles

    async def scenario() -> None:
        async with World(tmp_path, a, memory={"edge": 1 << 20}) as world:
            await world.until_more(1, 1)
            with pytest.raises(PlanError, match=r"node 'edge': its Sections need about \d+ MiB, 0 MiB are left"):
                await world.apply(b)
            assert await world.plans() == {1}

    asyncio.run(scenario())
