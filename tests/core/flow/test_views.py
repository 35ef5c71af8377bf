"""Several views of one node through one engine: what is captured while it runs makes the next batch."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from bench import TickingClock
from tiny_bundle import VIEWS, images, make_tiny_bundle

from tierline.core.bundle import Bundle
from tierline.core.errors import EngineError, ShapeMismatch
from tierline.core.flow.levels import FEATURE, LOGITS
from tierline.core.flow.node import EngineSettings, Node
from tierline.core.flow.views import ViewBatches
from tierline.core.flow.worker import Worker
from tierline.core.plan import Hierarchy, HierarchyNode, make_plan
from tierline.core.protocols import SectionSpec
from tierline.core.types import Arrays, TensorSpec, Tier


class Slow:
    """An engine whose first run waits to be let go; counts rows."""

    def __init__(self) -> None:
        self.spec = SectionSpec({"x": TensorSpec("float32", (2,))}, {"y": TensorSpec("float32", (2,))})
        self.go, self.batches, self.fails = threading.Event(), list[int](), False

    def warmup(self) -> None: ...

    def run(self, inputs: Arrays) -> Arrays:
        assert self.go.wait(10)
        self.batches.append(len(inputs["x"]))
        if self.fails:
            raise EngineError("broken")
        return {"y": inputs["x"] * 2}

    def close(self) -> None: ...


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker("test")
    yield made
    made.close()


def row(value: float) -> Any:
    return lambda: np.full(2, value, np.float32)


@pytest.mark.parametrize(("max_batch", "batches"), [(64, [1, 5]), (2, [1, 2, 2, 1])])
def test_what_waits_runs_together_and_nobody_gets_anothers_row(
    worker: Worker, max_batch: int, batches: list[int]
) -> None:
    engine, other = Slow(), Slow()
    other.go.set()

    async def scenario() -> None:
        views = ViewBatches(worker, TickingClock())
        first = asyncio.create_task(views.run(engine, row(0), max_batch))
        while worker._jobs.qsize() or not views._queues or views._queues[id(engine)]:  # noqa: ASYNC110  (the thread takes it)
            await asyncio.sleep(0.001)
        more = [asyncio.create_task(views.run(engine, row(n), max_batch)) for n in range(1, 6)]
        apart = asyncio.create_task(views.run(other, row(9), max_batch))
        await asyncio.sleep(0)
        engine.go.set()
        for n, task in enumerate([first, *more]):
            outputs, spans, num_rows = await task
            assert num_rows in batches
            np.testing.assert_array_equal(outputs["y"], [[2 * n, 2 * n]])
            assert min(spans) >= 0
        assert (await apart)[0]["y"].shape == (1, 2)
        assert not views._queues

    asyncio.run(asyncio.wait_for(scenario(), 20))
    assert engine.batches == batches
    assert other.batches == [1]


def test_a_bad_capture_fails_alone_and_a_broken_engine_for_all(worker: Worker) -> None:
    engine = Slow()

    def bad() -> Any:
        raise ShapeMismatch("no image")

    async def scenario() -> None:
        views = ViewBatches(worker, TickingClock())
        good, wrong = (asyncio.create_task(views.run(engine, prepare, 8)) for prepare in (row(1), bad))
        await asyncio.sleep(0)
        engine.go.set()
        with pytest.raises(ShapeMismatch, match="no image"):
            await wrong
        assert (await good)[0]["y"].tolist() == [[2.0, 2.0]]
        engine.fails = True
        for task in [asyncio.create_task(views.run(engine, row(n), 8)) for n in range(2)]:
            with pytest.raises(EngineError, match="broken"):
                await task

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_a_job_that_ends_late_leaves_the_queue_of_the_next_alone() -> None:
    class Manual:
        """Whoever submits a job ends it by hand, in any order."""

        def __init__(self) -> None:
            self.jobs: list[tuple[Any, Any]] = []

        def submit(self, job: Any, done: Any) -> None:
            self.jobs.append((job, done))

    async def scenario() -> None:
        engine, manual = Slow(), Manual()
        engine.go.set()
        views = ViewBatches(manual, TickingClock())  # type: ignore[arg-type]
        tasks: list[Any] = []

        async def come(number: int) -> None:
            tasks.extend(asyncio.create_task(views.run(engine, row(1), 1)) for _ in range(number))
            await asyncio.sleep(0)

        await come(1)
        first = manual.jobs[0][0]()  # it has run, and its end is on its way
        await come(1)
        second = manual.jobs[1][0]()
        manual.jobs[0][1](first, None)
        await come(3)
        manual.jobs[1][1](second, None)
        for job, done in itertools.islice(manual.jobs, 2, None):
            done(job(), None)
        await asyncio.gather(*tasks)
        assert not views._queues

    asyncio.run(asyncio.wait_for(scenario(), 20))


@pytest.fixture(scope="module")
def alike(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Every view has the Section of the first."""
    made = make_tiny_bundle(tmp_path_factory.mktemp("alike"))
    first = made.manifest.levels[0]
    same = msgspec.structs.replace(first, sections=dict.fromkeys(VIEWS, first.sections[VIEWS[0]]))
    manifest = msgspec.structs.replace(made.manifest, levels=[same, *made.manifest.levels[1:]])
    return Bundle(made.folder, manifest, made.digest)


@pytest.mark.parametrize("inline_ms", [0.0, 1e6])
def test_views_of_one_file_share_an_engine_and_get_what_each_alone_gets(alike: Bundle, inline_ms: float) -> None:
    nodes = (HierarchyNode("cloud", Tier.CLOUD), HierarchyNode("device", Tier.DEVICE, "cloud", tuple(VIEWS[:2])),
             HierarchyNode("other", Tier.DEVICE, "cloud", tuple(VIEWS[2:])))  # fmt: skip
    plan = make_plan(Hierarchy(nodes), alike.manifest, alike.digest)

    def nothing(*_: object) -> None:
        return None

    async def scenario() -> None:
        settings = EngineSettings(inline_ms=inline_ms)
        node = Node("device", 1, TickingClock(), settings, on_outcome=nothing, on_answered=nothing, on_batch=nothing)
        node.adopt(plan, alike)
        resident = node.residents.now
        assert resident is not None
        engines = resident.levels[0].sections
        assert engines.keys() == {*VIEWS[:2]}
        assert engines[VIEWS[0]] is engines[VIEWS[1]]
        assert len({ns for (level, _), ns in resident.row_ns.items() if level == 0}) == 1
        work = [(view, images(4)[n][seq]) for seq in range(4) for n, view in enumerate(VIEWS[:2])]
        found = await asyncio.gather(*(resident.run_view(view, image) for view, image in work))
        for (view, image), (outputs, _) in zip(work, found, strict=True):
            expected, _ = resident.view_job(view, image)()
            for key in (LOGITS, FEATURE):
                np.testing.assert_allclose(outputs[key], expected[key], rtol=1e-5)
        node.close()

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_views_with_files_of_their_own_have_engines_of_their_own(tmp_path: Path) -> None:
    from tierline.core.flow.levels import Levels, engine_maker

    bundle = make_tiny_bundle(tmp_path)
    levels = Levels(bundle, engine_maker("onnxruntime"), views={v: v for v in VIEWS}, joins=True, runs=set())
    assert len({id(engine) for engine in levels[0].sections.values()}) == 3
    levels.close()
