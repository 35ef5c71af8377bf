"""Plans of another structure, brought into a hierarchy that runs: on one event loop, over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench import oracle_views
from tiny_bundle import VIEWS, images, make_tiny_bundle

import tierline.cloud.config as cloud_config
from tierline.cloud.config import CloudConfig, PlanKnobs
from tierline.cloud.server import Server
from tierline.core.bundle import Bundle
from tierline.core.errors import PlanError, TierlineError
from tierline.core.flow.levels import engine_maker
from tierline.core.flow.oracle import Oracle
from tierline.core.link.ask import ask_plans, ask_status, change_plan
from tierline.core.types import Tier
from tierline.edge.agent import Agent
from tierline.edge.config import AgentConfig, Engine, Node, SinkConfig, SourceConfig

THRESHOLDS = {"local": 0.45, "edge": 0.4}
SET = [f"thresholds.{name}={value}" for name, value in THRESHOLDS.items()]
WITHIN_S = 20.0
NUM = 64


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    """Other weights, so that a sample that met two Plans would be seen; other cuts, so that Sections move."""
    folder = tmp_path_factory.mktemp("bundles")
    device, edge, cloud = Tier.DEVICE, Tier.EDGE, Tier.CLOUD
    return [
        make_tiny_bundle(folder / "a"),
        make_tiny_bundle(folder / "b", seed=8, tiers=(device, cloud, cloud), aggregator="max_pool"),
        make_tiny_bundle(folder / "c", seed=9, tiers=(device, edge, edge), num_relu=10),
    ]


class World:
    """Cloud, edge node and devices as tasks on this loop, sampling without end."""

    def __init__(self, folder: Path, bundle: Bundle, join: str = 'by = "sequence"\nwindow_ms = 5000') -> None:
        self.folder, self.bundle = folder, bundle
        nodes = "".join(
            f'[[node]]\nid = "device-{v}"\ntier = "device"\nparent = "edge"\nviews = ["{v}"]\n' for v in VIEWS
        )
        self.hierarchy = folder / "hierarchy.toml"
        self.hierarchy.write_text(
            f'schema = 1\nname = "t"\nmodel = "{bundle.folder}"\n{nodes}'
            '[[node]]\nid = "edge"\ntier = "edge"\nparent = "cloud"\n[[node]]\nid = "cloud"\ntier = "cloud"\n'
            f"[join]\n{join}\n"
        )
        for n, view in enumerate(VIEWS):
            np.savez(folder / f"{view}.npz", images=images(256)[n][:NUM], labels=np.arange(NUM))
        self.agents: dict[str, Agent] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.cloud = self.edge = ""
        self.memory: dict[str, int] = {}

    async def __aenter__(self) -> World:
        await self.start_cloud()
        await self.start("edge")
        for view in VIEWS:
            await self.start(f"device-{view}", view)
        return self

    async def __aexit__(self, *_: object) -> None:
        for name in reversed(list(self.tasks)):
            await self.stop(name)

    async def start_cloud(self) -> None:
        node = cloud_config.Node(listen=self.cloud or "127.0.0.1:0", state_dir=str(self.folder / "cloud"))
        config = CloudConfig(
            schema=1,
            hierarchy=str(self.hierarchy),
            bundle=str(self.bundle.folder),
            node=node,
            plan=PlanKnobs(thresholds=THRESHOLDS, budget_ms=10_000.0),
        )
        self.server = Server(config)
        self.cloud = await self._run("cloud", self.server)

    async def start(self, name: str, view: str = "") -> None:
        parent, listen = (self.edge, "") if view else (self.cloud, self.edge or "127.0.0.1:0")
        uri = f"dataset:{self.folder / view}.npz?loop=true&rate=400"
        config = AgentConfig(
            schema=1,
            node=Node(name, parent, str(self.folder / name), listen),
            engine=Engine(max_memory_bytes=self.memory.get(name, 0)),
            source=(SourceConfig(view, uri, in_flight=IN_FLIGHT),) if view else (),
            sink=(SinkConfig(f"jsonl:{self.folder / name}.jsonl"),) if view else (),
        )
        self.agents[name] = Agent(config)
        address = await self._run(name, self.agents[name])
        if not view:
            self.edge = address

    async def _run(self, name: str, runner: Any) -> str:
        ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        task = self.tasks[name] = asyncio.create_task(runner.run(ready.set_result))
        await asyncio.wait((ready, task), timeout=WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        return str((await ready)["listen"])

    async def stop(self, name: str) -> None:
        task = self.tasks.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def apply(self, bundle: Bundle, **more: Any) -> dict[str, Any]:
        return await change_plan(self.cloud, settings=SET, bundle=bundle, **more)

    def records(self) -> list[dict[str, Any]]:
        lines = [line for path in self.folder.glob("*.jsonl") for line in path.read_text().splitlines()]
        return [json.loads(line) for line in lines]

    async def until(self, what: str, holds: Any) -> Any:
        for _ in range(int(WITHIN_S / 0.02)):
            if found := holds():
                return found
            await asyncio.sleep(0.02)
        raise AssertionError(f"not within {WITHIN_S} s: {what}")

    async def until_more(self, plan: int, count: int = 30) -> None:
        """So many answers of every view under this Plan."""

        def enough() -> bool:
            seen = Counter(r["view"] for r in self.records() if r["plan"] == plan)
            return all(seen[view] >= count for view in VIEWS)

        await self.until(f"{count} answers under plan {plan}", enough)


IN_FLIGHT = 8


def check(records: list[dict[str, Any]], ran: dict[int, Bundle]) -> None:
    """One answer per view and sample, none missing in between, each that of the Plan that it names."""
    seen = Counter((r["view"], r["id"]["epoch"], r["id"]["seq"]) for r in records)
    assert set(seen.values()) == {1}, "answered twice"
    for view in VIEWS:
        numbers = sorted(r["id"]["seq"] for r in records if r["view"] == view)
        assert numbers == list(range(len(numbers))), f"{view}: lost"
    oracles = {
        version: Oracle(bundle, engine_maker("onnxruntime")).answers(oracle_views(bundle)[:, :NUM], THRESHOLDS)
        for version, bundle in ran.items()
    }
    last = max(r["id"]["seq"] for r in records)
    for record in records:
        if record["reason"] == "stopped" and record["id"]["seq"] >= last - 2 * IN_FLIGHT:
            continue  # in flight when the test ended
        assert record["reason"] == "", record
        exits, index_B = oracles[record["plan"]]
        at = record["truth"]
        assert (record["exit"], record["index"]) == (exits[at], index_B[at]), record
    plans: dict[int, set[int]] = {}
    for record in records:
        plans.setdefault(record["id"]["seq"], set()).add(record["plan"])
    assert all(len(found) == 1 for found in plans.values()), "views of one sample met two Plans"


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
