"""A whole hierarchy around the tiny Bundle on one event loop, over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench import oracle_views
from tiny_bundle import VIEWS, images

import tierline.cloud.config as cloud_config
from tierline.cloud.config import CloudConfig, PlanKnobs
from tierline.cloud.server import Server
from tierline.core.bundle import Bundle
from tierline.core.flow.levels import engine_maker
from tierline.core.flow.oracle import Oracle
from tierline.core.link.ask import ask_status, change_plan
from tierline.edge.agent import Agent
from tierline.edge.config import AgentConfig, Engine, Node, SinkConfig, SourceConfig

THRESHOLDS = {"local": 0.45, "edge": 0.4}
SET = [f"thresholds.{name}={value}" for name, value in THRESHOLDS.items()]
WITHIN_S = 20.0
NUM, IN_FLIGHT = 64, 8


class World:
    """Cloud, edge node and devices as tasks on this loop, sampling without end unless `query` says otherwise."""

    def __init__(
        self,
        folder: Path,
        bundle: Bundle,
        join: str = 'by = "sequence"\nwindow_ms = 5000',
        *,
        views: Sequence[str] = VIEWS,
        query: str = "?loop=true&rate=150",
        in_flight: int = IN_FLIGHT,
        memory: Mapping[str, int] | None = None,
        **knobs: Any,
    ) -> None:
        """`views` are those whose devices come; `memory` limits nodes to so many bytes."""
        self.folder, self.bundle, self.views = folder, bundle, views
        self.query, self.in_flight, self.memory = query, in_flight, memory or {}
        self.knobs = PlanKnobs(thresholds=THRESHOLDS, budget_ms=10_000.0, **knobs)
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
            # Labels are the samples' numbers, so that a record says which sample it is about.
            np.savez(folder / f"{view}.npz", images=images(256)[n][:NUM], labels=np.arange(NUM))
        self.agents: dict[str, Agent] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.cloud = self.edge = ""
        self._offsets: Counter[Path] = Counter()
        self._records: list[dict[str, Any]] = []

    async def __aenter__(self) -> World:
        await self.start_cloud()
        await self.start("edge")
        await asyncio.gather(*(self.start(f"device-{view}", view) for view in self.views))
        return self

    async def __aexit__(self, *_: object) -> None:
        for name in reversed(list(self.tasks)):
            await self.stop(name)

    async def start_cloud(self) -> None:
        node = cloud_config.Node(listen=self.cloud or "127.0.0.1:0", state_dir=str(self.folder / "cloud"))
        self.config = CloudConfig(
            schema=1, hierarchy=str(self.hierarchy), bundle=str(self.bundle.folder), node=node, plan=self.knobs
        )
        self.cloud = await self._run("cloud", Server(self.config))

    async def start(self, name: str, view: str = "") -> None:
        parent, listen = (self.edge, "") if view else (self.cloud, self.edge or "127.0.0.1:0")
        uri = f"dataset:{self.folder / view}.npz{self.query}"
        config = AgentConfig(
            schema=1,
            node=Node(name, parent, str(self.folder / name), listen),
            engine=Engine(max_memory_bytes=self.memory.get(name, 0)),
            source=(SourceConfig(view, uri, in_flight=self.in_flight),) if view else (),
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
        """What the devices' sinks have got, whole lines."""
        for path in self.folder.glob("*.jsonl"):
            with path.open("rb") as file:
                file.seek(self._offsets[path])
                chunk = file.read()
            whole = chunk[: chunk.rfind(b"\n") + 1]
            self._offsets[path] += len(whole)
            self._records += map(json.loads, whole.splitlines())
        return self._records

    async def plans(self) -> set[int]:
        """Versions that nodes run."""
        return {record["plan"] for record in (await ask_status(self.cloud)).values()}

    async def until(self, what: str, holds: Any) -> Any:
        for _ in range(int(WITHIN_S / 0.02)):
            if found := holds():
                return found
            await asyncio.sleep(0.02)
            for task in self.tasks.values():
                if task.done():
                    task.result()
        raise AssertionError(f"not within {WITHIN_S} s: {what}")

    async def until_more(self, plan: int, count: int = 30) -> None:
        """So many answers of every view under this Plan."""

        def enough() -> bool:
            seen = Counter(r["view"] for r in self.records() if r["plan"] == plan)
            return all(seen[view] >= count for view in VIEWS)

        await self.until(f"{count} answers under plan {plan}", enough)


def check(records: list[dict[str, Any]], ran: dict[int, Bundle]) -> None:
    """One answer per view and sample, none missing in between, each that of the Plan that it names. `records` were read
    while the world was running: the last samples of each view may still be in flight."""
    seen = Counter((r["view"], r["id"]["epoch"], r["id"]["seq"]) for r in records)
    assert set(seen.values()) == {1}, "answered twice"
    last = min(max(r["id"]["seq"] for r in records if r["view"] == view) for view in VIEWS)
    for view in VIEWS:
        numbers = {r["id"]["seq"] for r in records if r["view"] == view}
        assert numbers >= set(range(last - 2 * IN_FLIGHT)), f"{view}: lost"
    oracles = {
        version: Oracle(bundle, engine_maker("onnxruntime")).answers(oracle_views(bundle)[:, :NUM], THRESHOLDS)
        for version, bundle in ran.items()
    }
    for record in records:
        assert record["reason"] == "", record
        exits, index_B = oracles[record["plan"]]
        at = record["truth"]
        assert (record["exit"], record["index"]) == (exits[at], index_B[at]), record
    plans: dict[int, set[int]] = {}
    for record in records:
        plans.setdefault(record["id"]["seq"], set()).add(record["plan"])
    assert all(len(found) == 1 for found in plans.values()), "views of one sample met two Plans"
