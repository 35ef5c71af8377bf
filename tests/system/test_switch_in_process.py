"""Plans of another structure, brought into a hierarchy that runs: on one event loop, over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from bench import oracle_views
from tiny_bundle import VIEWS, images, make_tiny_bundle

import tierline.cloud.config as cloud_config
from tierline.cloud.config import CloudConfig, PlanKnobs
from tierline.cloud.plans import PlanStore
from tierline.cloud.server import Server, load
from tierline.cloud.shelf import Shelf
from tierline.cloud.switch import Switcher
from tierline.core.bundle import MANIFEST, Bundle, write_bundle
from tierline.core.errors import BundleError, EngineError, PlanError, TierlineError
from tierline.core.flow import residents
from tierline.core.flow.levels import engine_maker
from tierline.core.flow.oracle import Oracle
from tierline.core.link.ask import ask_plans, ask_status, change_plan
from tierline.core.plan import Plan, make_plan
from tierline.core.types import Tier
from tierline.edge.agent import Agent
from tierline.edge.config import AgentConfig, Engine, Node, SinkConfig, SourceConfig

THRESHOLDS = {"local": 0.45, "edge": 0.4}
SET = [f"thresholds.{name}={value}" for name, value in THRESHOLDS.items()]
WITHIN_S = 20.0
NUM, IN_FLIGHT = 64, 8


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
        self._offsets: Counter[Path] = Counter()
        self._records: list[dict[str, Any]] = []

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
        self.config = config
        self.server = Server(config)
        self.cloud = await self._run("cloud", self.server)

    async def start(self, name: str, view: str = "") -> None:
        parent, listen = (self.edge, "") if view else (self.cloud, self.edge or "127.0.0.1:0")
        uri = f"dataset:{self.folder / view}.npz?loop=true&rate=150"
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
        """What the devices' sinks have got, whole lines."""
        for path in self.folder.glob("*.jsonl"):
            with path.open("rb") as file:
                file.seek(self._offsets[path])
                chunk = file.read()
            whole = chunk[: chunk.rfind(b"\n") + 1]
            self._offsets[path] += len(whole)
            self._records += map(json.loads, whole.splitlines())
        return self._records

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


async def once(raw: bytes) -> AsyncIterator[bytes]:
    yield raw


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


async def plans_of(world: World) -> set[int]:
    """Versions that nodes run."""
    return {record["plan"] for record in (await ask_status(world.cloud)).values()}


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
            assert await plans_of(world) == {1}
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
            assert await plans_of(world) == {2}

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
            assert await plans_of(world) == {2}

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
            assert await plans_of(world) == {1}
            assert (await world.apply(c))["version"] == 2
            await world.until_more(2)

    asyncio.run(scenario())


def test_without_memory_for_two_samples_pause(
    tmp_path: Path, bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The edge node and a device may hold one Plan only: what is new waits until what is older was answered."""
    a, _, c = bundles
    one = 100 << 20
    monkeypatch.setattr(residents, "resident_bytes", lambda: one)

    async def scenario() -> None:
        world = World(tmp_path, a)
        world.memory = {"edge": one + (6 << 20), "device-left": one + (1 << 20)}
        async with world:
            await world.until_more(1)
            made = await world.apply(c)
            notes = made["switch"]["notes"]
            assert {note.partition(":")[0] for note in notes} == {"edge", "device-left"}
            assert all("samples will pause" in note for note in notes)
            await world.until_more(2)
            assert await plans_of(world) == {2}
            check(world.records(), {1: a, 2: c})

    asyncio.run(scenario())


def test_a_plan_that_cannot_be_loaded_after_the_pause_is_followed_by_another(
    tmp_path: Path, bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is committed, so there is no way back for it: the node says what is wrong, and waits for the next one."""
    a, _, c = bundles
    one = 100 << 20
    monkeypatch.setattr(residents, "resident_bytes", lambda: one)

    async def scenario() -> None:
        # Refused views run ahead of one another: let nobody wait long for them afterwards.
        world = World(tmp_path, a, 'by = "sequence"\nwindow_ms = 50')
        world.memory = {"edge": one + (6 << 20)}
        async with world:
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


def test_what_does_not_even_fit_alone_is_refused(
    tmp_path: Path, bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, _ = bundles
    monkeypatch.setattr(residents, "resident_bytes", lambda: 100 << 20)

    async def scenario() -> None:
        world = World(tmp_path, a)
        world.memory = {"edge": 1 << 20}
        async with world:
            await world.until_more(1, 1)
            with pytest.raises(PlanError, match=r"node 'edge': its Sections need about \d+ MiB, 0 MiB are left"):
                await world.apply(b)
            assert await plans_of(world) == {1}

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
            assert await plans_of(world) == {1}
            plan = msgspec.json.decode(msgspec.json.encode(told["plan"]), type=Plan)
            moved = {**plan.nodes, "edge": msgspec.structs.replace(plan.nodes["edge"], runs=(2,))}
            document = msgspec.structs.replace(plan, nodes=moved).document()
            with pytest.raises(PlanError, match="every level from 1 to 2 must run once"):
                await world.apply(b, plan=document)
            made = await world.apply(b, plan=msgspec.structs.replace(plan, max_batch=3).document())
            assert made["plan"]["max_batch"] == 3

    asyncio.run(scenario())
