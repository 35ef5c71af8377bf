"""The engine `tensorrt` whole (cache, build, run, fallback), on a fake TensorRT and the mock driver."""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import fake_tensorrt
import numpy as np
import onnxruntime
import pytest
from fake_tensorrt import State
from onnx_models import conv_relu

from tierline.core.clock import MonotonicClock
from tierline.core.engine import _trt_keep
from tierline.core.engine._trt_build import Built
from tierline.core.errors import EngineError, MissingDependency
from tierline.core.flow.engines import Awaited, check_engine, precisions_of
from tierline.core.flow.levels import engine_maker
from tierline.core.flow.views import ViewBatches
from tierline.core.flow.worker import Worker
from tierline.kernels.cuda import CudaError, Device
from tierline.models.precision.convert import convert

X_B = np.random.default_rng(2).normal(size=(3, 1, 8, 8)).astype(np.float32)
EXPECTED_B = onnxruntime.InferenceSession(conv_relu(), providers=["CPUExecutionProvider"]).run(["y"], {"x": X_B})[0]


@pytest.fixture
def module(gpu: Device, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The engine's module, freshly imported over the fake."""
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt)
    monkeypatch.delitem(sys.modules, "tierline.core.engine.tensorrt", raising=False)
    fresh = importlib.import_module("tierline.core.engine.tensorrt")
    monkeypatch.setattr(fresh, "device", lambda: gpu)
    yield fresh
    sys.modules.pop("tierline.core.engine.tensorrt", None)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sections built so far."""
    made: list[str] = []

    def build(trt: Any, model: bytes, name: str, *rest: Any, **options: Any) -> Built:
        made.append(name)
        monkeypatch.setattr(State, "takes_engines", True)
        return Built(b"plan of " + model, "fp32", b"")

    monkeypatch.setattr(_trt_keep, "build", build)
    return made


def test_it_is_built_once_kept_and_run(module: Any, builds: list[str]) -> None:
    for _ in range(2):
        engine = engine_maker("tensorrt")(conv_relu(), "section")
        engine.warmup()
        np.testing.assert_allclose(engine.run({"x": X_B})["y"], EXPECTED_B, atol=1e-6)
        assert engine.run({"x": X_B[:0]})["y"].shape == (0, 4, 8, 8)
        engine.close()
    assert builds == ["section"]


def test_a_kept_engine_that_is_refused_is_built_again(
    module: Any, builds: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make = engine_maker("tensorrt")
    make(conv_relu(), "section").close()
    monkeypatch.setattr(State, "takes_engines", False)  # until the next build
    with caplog.at_level(logging.WARNING, "tierline.engine"):
        engine = make(conv_relu(), "section")
    np.testing.assert_allclose(engine.run({"x": X_B})["y"], EXPECTED_B, atol=1e-6)
    engine.close()
    assert builds == ["section", "section"]
    assert "is built again" in caplog.text


def test_a_damaged_file_is_built_again(module: Any, builds: list[str], cache: Path) -> None:
    make = engine_maker("tensorrt")
    make(conv_relu(), "section").close()
    (path,) = (cache / "engines").glob("*.engine")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    make(conv_relu(), "section").close()
    assert builds == ["section", "section"]


def test_onnxruntime_answers_until_it_is_built(module: Any, builds: list[str]) -> None:
    engine = engine_maker("tensorrt", meanwhile="onnxruntime")(conv_relu(), "section")
    assert isinstance(engine, Awaited)
    engine.warmup()
    np.testing.assert_allclose(engine.run({"x": X_B})["y"], EXPECTED_B, atol=1e-6)
    engine.join(30)
    assert engine.state == "ready"
    before = State.num_executed
    np.testing.assert_allclose(engine.run({"x": X_B})["y"], EXPECTED_B, atol=1e-6)
    assert State.num_executed == before + 1
    engine.close()


def test_without_a_gpu_it_is_said_so(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Device:
        raise CudaError("no NVIDIA driver: libcuda.so.1")

    monkeypatch.setattr(module, "device", none)
    with pytest.raises(MissingDependency, match="engine 'tensorrt' has no GPU here: no NVIDIA driver"):
        check_engine("tensorrt")
    with pytest.raises(EngineError, match="section: TensorRT has no GPU here: no NVIDIA driver"):
        engine_maker("tensorrt")(conv_relu(), "section")


def test_without_tensorrt_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "tierline.core.engine.tensorrt", raising=False)
    with pytest.raises(MissingDependency, match=r"engine 'tensorrt' needs TensorRT .*--system-site-packages"):
        check_engine("tensorrt")


def test_each_precision_has_an_engine_of_its_own(module: Any, builds: list[str]) -> None:
    """The digest of the file is part of the key."""
    made = convert(conv_relu(), ["float16", "int8"], {"x": X_B}, "section")
    for model in (conv_relu(), made["float16"], made["int8"], made["int8"]):
        engine = engine_maker("tensorrt")(model, "section")
        found_B = engine.run({"x": X_B})["y"]
        np.testing.assert_allclose(found_B, EXPECTED_B, atol=0.03 * np.abs(EXPECTED_B).max())
        engine.close()
    assert len(builds) == 3


@pytest.mark.parametrize(("arch", "has_float8"), [("sm_87", False), ("sm_89", True), ("sm_90", True), ("sm_110", True)])
def test_float8_is_there_from_ada_on(module: Any, monkeypatch: pytest.MonkeyPatch, arch: str, has_float8: bool) -> None:
    monkeypatch.setattr(module, "device", lambda: SimpleNamespace(arch=arch))
    found = precisions_of("tensorrt")
    assert found == ("float32", "float16", "int8", *(["float8_e4m3"] if has_float8 else []))


def test_views_that_wait_for_it_are_one_batch(module: Any, builds: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    engine, batches = engine_maker("tensorrt")(conv_relu(), "section"), list[int]()
    run = engine.run
    monkeypatch.setattr(engine, "run", lambda inputs: batches.append(len(inputs["x"])) or run(inputs))
    worker = Worker("test")

    async def scenario() -> None:
        views, begin = ViewBatches(worker, MonotonicClock()), threading.Event()
        worker.submit(lambda: begin.wait(10), lambda result, error: None)  # the thread is busy meanwhile
        tasks = [asyncio.create_task(views.run(engine, lambda row=row: row, 8)) for row in X_B]  # type: ignore[misc]
        await asyncio.sleep(0)
        begin.set()
        for task, expected in zip(tasks, EXPECTED_B, strict=True):
            np.testing.assert_allclose((await task)[0]["y"][0], expected, atol=1e-6)

    asyncio.run(asyncio.wait_for(scenario(), 20))
    worker.close()
    engine.close()
    assert batches == [3]
