"""A whole hierarchy on one event loop, over real sockets: it answers as the Bundle does in one process."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench import oracle_views
from tiny_bundle import VIEWS, images

import tierline.cloud.config as cloud_config
from tierline.cloud.config import CloudConfig, PlanKnobs
from tierline.cloud.server import run_cloud
from tierline.core.bundle import Bundle
from tierline.core.flow import attendance
from tierline.core.flow.levels import engine_maker
from tierline.core.flow.oracle import Oracle
from tierline.edge.agent import run_agent
from tierline.edge.config import AgentConfig, Node, SinkConfig, SourceConfig

NUM_SAMPLES = 64
THRESHOLDS = {"local": 0.45, "edge": 0.4}
WITHIN_S = 20.0


class InProcess:
    """Cloud, edge node and devices as tasks; `records` is what the devices' sinks have got."""

    def __init__(self, folder: Path, bundle: Bundle, join: str, **knobs: Any) -> None:
        self.folder, self.bundle = folder, bundle
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
            shown = images(256)[n][:NUM_SAMPLES]
            np.savez(folder / f"{view}.npz", images=shown, labels=np.arange(NUM_SAMPLES))
        self.tasks: list[asyncio.Task[None]] = []

    async def run(self, *views: str, in_flight: int = 1) -> dict[tuple[str, int], dict[str, Any]]:
        """Until these views have all their answers, by view and sample."""
        try:
            cloud = await self._start(run_cloud, self._cloud())
            edge = await self._start(run_agent, self._agent("edge", cloud, "127.0.0.1:0"))
            await asyncio.gather(
                *(self._start(run_agent, self._agent(f"device-{v}", edge, "", v, in_flight)) for v in views)
            )
            done = asyncio.create_task(self._until_answered(len(views) * NUM_SAMPLES))
            await asyncio.wait((done, *self.tasks), timeout=WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
            for task in self.tasks:
                if task.done():
                    task.result()
            assert done.done(), f"{len(self.records())} answers within {WITHIN_S} s"
        finally:
            for task in reversed(self.tasks):
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        records = self.records()
        found = {(record["view"], record["truth"]): record for record in records}
        assert len(found) == len(records), "a view was answered twice"
        return found

    def records(self) -> list[dict[str, Any]]:
        lines = [line for path in self.folder.glob("*.jsonl") for line in path.read_text().splitlines()]
        return [json.loads(line) for line in lines]

    async def _until_answered(self, num_answers: int) -> None:
        while sum(path.read_bytes().count(b"\n") for path in self.folder.glob("*.jsonl")) < num_answers:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def _start(self, run: Any, config: Any) -> str:
        """Returns the address it listens on, once it is ready."""
        ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(run(config, ready.set_result))
        self.tasks.append(task)
        await asyncio.wait((ready, task), timeout=WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        return str((await ready)["listen"])

    def _cloud(self) -> CloudConfig:
        node = cloud_config.Node(listen="127.0.0.1:0", state_dir=str(self.folder / "cloud"))
        return CloudConfig(
            schema=1, hierarchy=str(self.hierarchy), bundle=str(self.bundle.folder), node=node, plan=self.knobs
        )

    def _agent(self, node: str, parent: str, listen: str, view: str = "", in_flight: int = 1) -> AgentConfig:
        uri = f"dataset:{self.folder / view}.npz"
        return AgentConfig(
            schema=1,
            node=Node(node, parent, str(self.folder / node), listen),
            source=(SourceConfig(view, uri, in_flight=in_flight),) if view else (),
            sink=(SinkConfig(f"jsonl:{self.folder / node}.jsonl"),) if view else (),
        )


def check(bundle: Bundle, records: dict[tuple[str, int], dict[str, Any]], *present: str) -> set[str]:
    """Sample for sample as the oracle with these views; returns the exits that were used."""
    mask = np.array([[view in present] * NUM_SAMPLES for view in VIEWS])
    oracle = Oracle(bundle, engine_maker("onnxruntime"))
    exits, index_B = oracle.answers(oracle_views(bundle)[:, :NUM_SAMPLES], THRESHOLDS, mask)
    for view in present:
        for seq in range(NUM_SAMPLES):
            record = records[view, seq]
            assert (record["exit"], record["index"], record["reason"]) == (exits[seq], index_B[seq], ""), (view, seq)
            assert record["num_views"] == len(present)
    return set(exits)


@pytest.mark.parametrize("in_flight", [1, 8])
@pytest.mark.parametrize("mode", ["on_demand", "eager"])
def test_all_together(tmp_path: Path, tiny_bundle: Bundle, mode: str, in_flight: int) -> None:
    world = InProcess(tmp_path, tiny_bundle, 'by = "sequence"\nwindow_ms = 5000', mode=mode)
    records = asyncio.run(world.run(*VIEWS, in_flight=in_flight))
    assert check(tiny_bundle, records, *VIEWS) == {"local", "edge", "cloud"}
    for record in records.values():
        hops = record["hops"]
        for hop, above in zip(hops, [*hops[1:], {"residence_ms": 0.0}], strict=True):
            spent = sum(hop["spans_ms"].values()) + above["residence_ms"]
            assert spent <= hop["residence_ms"] + 0.01, record


def test_a_device_that_never_comes(tmp_path: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attendance, "STARTUP_GRACE_NS", 200_000_000)
    world = InProcess(tmp_path, tiny_bundle, 'by = "sequence"\nwindow_ms = 1000')
    records = asyncio.run(world.run("left", "right", in_flight=4))
    assert len(check(tiny_bundle, records, "left", "right")) > 1


def test_triggered_captures(tmp_path: Path, tiny_bundle: Bundle) -> None:
    world = InProcess(tmp_path, tiny_bundle, 'by = "trigger"\nperiod_ms = 5\nwindow_ms = 5000')
    records = asyncio.run(world.run(*VIEWS, in_flight=8))
    # A device that connects later misses the first triggers, so views of different numbers meet; all are answered.
    assert set(records) == {(view, seq) for view in VIEWS for seq in range(NUM_SAMPLES)}
    assert {record["reason"] for record in records.values()} <= {""}


def test_without_a_join_every_view_is_a_sample(tmp_path: Path, tiny_bundle: Bundle) -> None:
    world = InProcess(tmp_path, tiny_bundle, 'by = "none"')
    records = asyncio.run(world.run(*VIEWS, in_flight=4))
    for view in VIEWS:
        check(tiny_bundle, {key: record for key, record in records.items() if key[0] == view}, view)
