"""Plans of another structure, brought into a hierarchy that runs: on one event loop, over real sockets."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from in_process import THRESHOLDS, WITHIN_S, World, check

from tierline.cloud.plans import PlanStore
from tierline.cloud.server import load
from tierline.cloud.shelf import Shelf
from tierline.cloud.switch import Switcher
from tierline.core.bundle import MANIFEST, Bundle, write_bundle
from tierline.core.errors import BundleError, PlanError, TierlineError
from tierline.core.link.ask import ask_plans, ask_status, change_plan
from tierline.core.plan import Plan, make_plan


async def once(raw: bytes) -> AsyncIterator[bytes]:
    yield raw


def test_there_and_back_while_samples_flow(tmp_path: Path, bundles: list[Bundle]) -> None:
    a, b, c = bundles

    async def scenario() -> None:
        async with World(tmp_path, a) as world:
            await world.until_more(1)
            ran = {1: a}
            for version, bundle in ((2, b), (3, c)):
                made = await world.apply(bundle)
                assert (made["version"], made["plan"]["bundle"]) == (version, bundle.digest)
                ran[version] = bundle
                await world.until_more(version)
            made = await change_plan(world.cloud, rollback_to=2)
            assert (made["version"], made["plan"]["bundle"]) == (4, b.digest)
            ran[4] = b
            await world.until_more(4)
            plans = await ask_plans(world.cloud)
            assert [plan["version"] for plan in plans] == [1, 2, 3, 4]
            status = await ask_status(world.cloud)
            assert {record["plan"] for record in status.values()} == {4}
            check(world.records(), ran)

    asyncio.run(scenario())


def test_a_node_that_cannot_prepare_stops_the_switch(tmp_path: Path, bundles: list[Bundle]) -> None:
    """One device's Section is no ONNX: everybody goes on with the Plan in force, and the operator hears who and why."""
    a, b, _ = bundles
    files = {name: b.read(name) for name in b.manifest.files}
    broken = write_bundle(tmp_path / "broken", b.manifest, {**files, "device-left.onnx": b"no model"})

    async def scenario() -> None:
        async with World(tmp_path, a) as world:
            await world.until_more(1)
            with pytest.raises(PlanError, match=r"plan 2 was given up; node 'device-left': .*; plan 1 goes on"):
                await world.apply(broken)
            await world.until(
                "everybody forgot it", lambda: not any(x.node.residents.next for x in world.agents.values())
            )
            before = len(world.records())
            await world.until("more answers", lambda: len(world.records()) > before + 50)
            assert await world.plans() == {1}
            assert [plan["version"] for plan in await ask_plans(world.cloud)] == [1]
            made = await world.apply(b)
            assert (made["version"], made["switch"]["notes"]) == (2, [])
            await world.until_more(2)
            check(world.records(), {1: a, 2: b})

    asyncio.run(scenario())


def test_a_node_that_is_away_takes_the_plan_when_it_comes_back(tmp_path: Path, bundles: list[Bundle]) -> None:
    a, b, _ = bundles

    async def scenario() -> None:
        async with World(tmp_path, a) as world:
            await world.until_more(1)
            await world.stop("device-left")
            await world.apply(b)
            await world.start("device-left", "left")
            await world.until_more(2)
            assert await world.plans() == {2}

    asyncio.run(scenario())


def test_an_edge_node_that_was_away_brings_the_plan_to_its_children(tmp_path: Path, bundles: list[Bundle]) -> None:
    """Its link alone was cut: devices went on under the old Plan, and follow it gently."""
    a, b, _ = bundles

    async def scenario() -> None:
        async with World(tmp_path, a) as world:
            await world.until_more(1)
            await world.stop("cloud")
            state = PlanStore(tmp_path / "cloud")
            made, hierarchy = load(world.config)[1:]
            state.start(made, a)
            plan = make_plan(hierarchy, b.manifest, b.digest, version=2, thresholds=THRESHOLDS, join=made.join)
            shelf = Shelf(tmp_path / "cloud")
            for digest in shelf.offer((b.folder / MANIFEST).read_bytes()):
                name = next(name for name, known in b.manifest.files.items() if known == digest)
                await shelf.put(b.digest, digest, once(b.read(name)))
            state.commit(plan, b, "written by a root that was killed before it could say so")
            await world.start_cloud()
            await world.until_more(2)
            assert await world.plans() == {2}

    asyncio.run(scenario())


def test_a_root_that_stops_before_the_commit_leaves_the_old_plan(
    tmp_path: Path, bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = bundles

    async def scenario() -> None:
        async with World(tmp_path, a) as world:
            await world.until_more(1)
            reached = asyncio.Event()

            async def never(*_: Any) -> Any:
                reached.set()
                await asyncio.Event().wait()

            with monkeypatch.context() as patch:
                patch.setattr(Switcher, "_until", never)
                patch.setattr(Switcher, "_settled", lambda self: asyncio.sleep(0))
                asking = asyncio.create_task(world.apply(b))
                await asyncio.wait_for(reached.wait(), WITHIN_S)
                await world.until(
                    "everybody is ready", lambda: all(x.node.residents.next for x in world.agents.values())
                )
                await world.stop("cloud")
            with pytest.raises(TierlineError):
                await asking
            await world.start_cloud()
            await world.until("it is forgotten", lambda: not any(x.node.residents.next for x in world.agents.values()))
            before = len(world.records())
            await world.until("more answers", lambda: len(world.records()) > before + 50)
            assert await world.plans() == {1}
            assert (await world.apply(c))["version"] == 2
            await world.until_more(2)

    asyncio.run(scenario())


@pytest.mark.parametrize("join", ['by = "trigger"\nperiod_ms = 5\nwindow_ms = 5000', 'by = "none"'])
def test_other_ways_to_join(tmp_path: Path, bundles: list[Bundle], join: str) -> None:
    a, b, _ = bundles

    async def scenario() -> None:
        async with World(tmp_path, a, join) as world:
            await world.until_more(1)
            await world.apply(b)
            await world.until_more(2)
            records = world.records()
        assert {r["reason"] for r in records} == {""}
        seen = Counter((r["view"], r["id"]["origin"], r["id"]["seq"]) for r in records)
        assert set(seen.values()) == {1}
        if "trigger" in join:
            assert len({(r["id"]["seq"], r["plan"]) for r in records}) == len({r["id"]["seq"] for r in records})

    asyncio.run(scenario())


def test_what_a_running_hierarchy_does_not_take(tmp_path: Path, bundles: list[Bundle]) -> None:
    a, b, _ = bundles
    files = {name: b.read(name) for name in b.manifest.files}
    other = write_bundle(tmp_path / "other", msgspec.structs.replace(b.manifest, labels=["x", "y", "z"]), files)

    async def scenario() -> None:
        async with World(tmp_path, a) as world:
            with pytest.raises(PlanError, match="Bundle 'tiny' has other labels"):
                await world.apply(other)
            with pytest.raises(PlanError, match="runs already"):
                await world.apply(a)
            with pytest.raises(BundleError, match="Bundle '000000000000' was not offered"):
                await change_plan(world.cloud, bundle=Bundle(b.folder, b.manifest, "0" * 64))
            told = await world.apply(b, dry_run=True)
            assert (told["version"], told["plan"]["bundle"]) == (2, b.digest)
            assert await world.plans() == {1}
            plan = msgspec.json.decode(msgspec.json.encode(told["plan"]), type=Plan)
            moved = {**plan.nodes, "edge": msgspec.structs.replace(plan.nodes["edge"], runs=(2,))}
            document = msgspec.structs.replace(plan, nodes=moved).document()
            with pytest.raises(PlanError, match="every level from 1 to 2 must run once"):
                await world.apply(b, plan=document)
            made = await world.apply(b, plan=msgspec.structs.replace(plan, max_batch=3).document())
            assert made["plan"]["max_batch"] == 3

    asyncio.run(scenario())
