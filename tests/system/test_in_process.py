"""A whole hierarchy on one event loop, over real sockets: it answers as the Bundle does in one process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench import oracle_views
from in_process import NUM, THRESHOLDS, World
from tiny_bundle import VIEWS

from tierline.core.bundle import Bundle
from tierline.core.errors import EngineError
from tierline.core.flow import attendance
from tierline.core.flow.levels import engine_maker
from tierline.core.flow.oracle import Oracle

Records = dict[tuple[str, int], dict[str, Any]]


async def answers(folder: Path, bundle: Bundle, join: str, *views: str, in_flight: int = 1, **knobs: Any) -> Records:
    """The records of these views, whose samples come once, by view and sample."""
    async with World(folder, bundle, join, views=views, query="", in_flight=in_flight, **knobs) as world:
        await world.until("all answers", lambda: len(world.records()) >= len(views) * NUM)
    records = world.records()
    found = {(record["view"], record["truth"]): record for record in records}
    assert len(found) == len(records), "a view was answered twice"
    return found


def check(bundle: Bundle, records: Records, *present: str) -> set[str]:
    """Sample for sample as the oracle with these views; returns the exits that were used."""
    mask = np.array([[view in present] * NUM for view in VIEWS])
    oracle = Oracle(bundle, engine_maker("onnxruntime"))
    exits, index_B = oracle.answers(oracle_views(bundle)[:, :NUM], THRESHOLDS, mask)
    for view in present:
        for seq in range(NUM):
            record = records[view, seq]
            assert (record["exit"], record["index"], record["reason"]) == (exits[seq], index_B[seq], ""), (view, seq)
            assert record["num_views"] == len(present)
    return set(exits)


@pytest.mark.parametrize("in_flight", [1, 8])
@pytest.mark.parametrize("mode", ["on_demand", "eager"])
def test_all_together(tmp_path: Path, tiny_bundle: Bundle, mode: str, in_flight: int) -> None:
    join = 'by = "sequence"\nwindow_ms = 5000'
    records = asyncio.run(answers(tmp_path, tiny_bundle, join, *VIEWS, in_flight=in_flight, mode=mode))
    assert check(tiny_bundle, records, *VIEWS) == {"local", "edge", "cloud"}
    for record in records.values():
        hops = record["hops"]
        for hop, above in zip(hops, [*hops[1:], {"residence_ms": 0.0}], strict=True):
            spent = sum(hop["spans_ms"].values()) + above["residence_ms"]
            assert spent <= hop["residence_ms"] + 0.01, record


def test_a_device_that_never_comes(tmp_path: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attendance, "STARTUP_GRACE_NS", 200_000_000)
    join = 'by = "sequence"\nwindow_ms = 1000'
    records = asyncio.run(answers(tmp_path, tiny_bundle, join, "left", "right", in_flight=4))
    assert len(check(tiny_bundle, records, "left", "right")) > 1


def test_triggered_captures(tmp_path: Path, tiny_bundle: Bundle) -> None:
    join = 'by = "trigger"\nperiod_ms = 5\nwindow_ms = 5000'
    records = asyncio.run(answers(tmp_path, tiny_bundle, join, *VIEWS, in_flight=8))
    # A device that connects later misses the first triggers, so views of different numbers meet; all are answered.
    assert set(records) == {(view, seq) for view in VIEWS for seq in range(NUM)}
    assert {record["reason"] for record in records.values()} <= {""}


def test_without_a_join_every_view_is_a_sample(tmp_path: Path, tiny_bundle: Bundle) -> None:
    join = 'by = "none"'
    records = asyncio.run(answers(tmp_path, tiny_bundle, join, *VIEWS, in_flight=4))
    for view in VIEWS:
        check(tiny_bundle, {key: record for key, record in records.items() if key[0] == view}, view)


def test_a_section_that_fails_is_told_once_and_its_samples_are_answered_below(
    tmp_path: Path, tiny_bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def __init__(self, engine: Any) -> None:
            self.spec = engine.spec

        def run(self, inputs: object) -> object:
            raise EngineError("edge: no memory left")

        def close(self) -> None: ...

    async def run() -> None:
        async with World(tmp_path, tiny_bundle) as world:
            resident = world.agents["edge"].node.residents.now
            assert resident is not None
            for index in range(len(resident.levels)):
                for part, engine in resident.levels[index].sections.items():
                    resident.levels[index].sections[part] = Broken(engine)
            reasons = await world.until("answers without", lambda: {x["reason"] for x in world.records()} - {""})
            assert reasons == {"engine"}

    asyncio.run(run())
    told = [x.getMessage() for x in caplog.records if "failed" in x.getMessage()]
    assert told == ["samples are answered without a Section that failed: edge: no memory left"]
