"""The engine that is built in the background, the one that answers meanwhile, and which are chosen."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import numpy as np
import onnxruntime
import pytest
from onnx_models import conv_relu

from tierline.core import catalog
from tierline.core.config.sections import Engine as EngineConfig
from tierline.core.errors import ConfigError, EngineError, MissingDependency
from tierline.core.flow import engines, host
from tierline.core.flow.engines import Awaited, OnStep, check_engine, split_token
from tierline.core.flow.levels import engine_maker
from tierline.core.protocols import SectionSpec
from tierline.core.types import Arrays, TensorSpec

SPEC = SectionSpec({"x": TensorSpec("float32", (2,))}, {"y": TensorSpec("float32", (2,))})
X = {"x": np.ones((3, 2), np.float32)}


class Fake:
    """Answers with its own number."""

    def __init__(self, number: float, spec: SectionSpec = SPEC) -> None:
        self.spec, self.number = spec, number
        self.warm = self.closed = False

    def warmup(self) -> None:
        self.warm = True

    def run(self, inputs: Arrays) -> Arrays:
        assert not self.closed
        return {"y": inputs["x"] * self.number}

    def close(self) -> None:
        self.closed = True


class Build:
    """A build that goes on when it is told to."""

    def __init__(self, result: Fake | Exception) -> None:
        self.result = result
        self.started, self.go = threading.Event(), threading.Event()
        self.on_step: OnStep = lambda *step: True
        self.may_go_on = True

    def __call__(self, on_step: OnStep) -> Fake:
        self.on_step = on_step
        self.may_go_on = on_step("timing", 1, 4)
        self.started.set()
        assert self.go.wait(30)
        self.may_go_on = on_step("timing", 2, 4)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@pytest.fixture
def first() -> Fake:
    return Fake(1)


def answer(engine: Awaited) -> float:
    return float(engine.run(X)["y"][0, 0])


def test_the_second_answers_until_the_first_is_there(first: Fake) -> None:
    made, build = Fake(7), Build(Fake(0))
    build.result = made
    engine = Awaited("section", build, first)
    engine.warmup()
    assert build.started.wait(30)
    assert (answer(engine), engine.state, first.warm) == (1, "building: timing 1/4", True)
    build.go.set()
    engine.join(30)
    assert (engine.state, made.warm, first.closed) == ("ready", True, False)  # no switch between batches yet
    assert [answer(engine), answer(engine)] == [7, 7]
    assert first.closed
    engine.close()
    assert made.closed


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (EngineError("section: no room"), "section: no room"),
        (ZeroDivisionError("a bug"), "a bug"),
        (Fake(7, SectionSpec({}, {})), "other tensors"),
    ],
    ids=["refused", "bug", "other tensors"],
)
def test_where_the_first_fails_the_second_goes_on(
    first: Fake, caplog: pytest.LogCaptureFixture, result: Fake | Exception, words: str
) -> None:
    build = Build(result)
    build.go.set()
    with caplog.at_level(logging.WARNING, "tierline.engine"):
        engine = Awaited("section", build, first)
        engine.join(30)
    assert answer(engine) == 1
    assert words in engine.state
    assert f"{words}" in caplog.text
    assert "the next engine goes on answering" in caplog.text
    assert not isinstance(result, Fake) or result.closed
    engine.close()
    assert first.closed


def test_closing_stops_a_build_and_frees_what_it_still_makes(first: Fake) -> None:
    made = Fake(7)
    build = Build(made)
    engine = Awaited("section", build, first)
    assert build.started.wait(30)
    assert build.may_go_on
    engine.close()
    build.go.set()
    engine.join(30)
    assert not build.may_go_on
    assert (first.closed, made.closed) == (True, True)


def test_one_is_built_at_a_time(first: Fake) -> None:
    builds = [Build(Fake(2)), Build(Fake(3))]
    some = Awaited("one", builds[0], first)
    assert builds[0].started.wait(30)
    other = Awaited("two", builds[1], Fake(1))
    assert not builds[1].started.is_set()
    builds[0].go.set()
    assert builds[1].started.wait(30)
    builds[1].go.set()
    for engine in (some, other):
        engine.join(30)
    assert (answer(some), answer(other)) == (2, 3)


def test_progress_is_logged_now_and_then(
    first: Fake, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_SAY_S", 0.0)
    build = Build(Fake(2))
    build.go.set()
    with caplog.at_level(logging.INFO, "tierline.engine"):
        Awaited("section", build, first).join(30)
    assert "section: building: timing 2/4" in caplog.text


# --- names ------------------------------------------------------------------------------------------------------


def test_a_provider_is_written_behind_the_name() -> None:
    assert split_token("onnxruntime") == ("onnxruntime", {})
    assert split_token("onnxruntime:cuda") == ("onnxruntime", {"provider": "cuda"})
    model, x_B = conv_relu(), np.ones((2, 1, 8, 8), np.float32)
    plain, named = engine_maker("onnxruntime")(model, "a"), engine_maker("onnxruntime:cpu")(model, "a")
    np.testing.assert_array_equal(plain.run({"x": x_B})["y"], named.run({"x": x_B})["y"])


def test_providers_that_are_unknown_or_absent_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ConfigError, match="no such provider: 'cdua'; nearest is \"cuda\""):
        check_engine("onnxruntime:cdua")
    for provider in ("cuda", "tensorrt"):
        with pytest.raises(MissingDependency, match=f"onnxruntime:{provider}.* has only cpu; pip install onnxruntime-"):
            check_engine(f"onnxruntime:{provider}")
    with pytest.raises(ConfigError, match="no such engine"):
        check_engine("onxruntime:cuda")


def test_a_provider_that_does_not_start_is_no_silent_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    session = onnxruntime.InferenceSession

    def falls_back(model: bytes, options: object, providers: list[str]) -> object:
        assert providers == ["CUDAExecutionProvider", "CPUExecutionProvider"]
        return session(model, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", falls_back)
    with pytest.raises(EngineError, match="section: ONNX Runtime's provider 'cuda' does not start here"):
        catalog.make("engine", "onnxruntime", model=conv_relu(), name="section", provider="cuda")


# --- the choice -------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Engines that cannot run; `tensorrt` takes time."""
    absent: set[str] = set()

    def check(token: str) -> None:
        if token in absent:
            raise MissingDependency(f"no {token}")

    monkeypatch.setattr(host, "check_engine", check)
    monkeypatch.setattr(host, "takes_time", lambda token: token == "tensorrt")
    yield absent


@pytest.mark.parametrize(
    ("prefer", "absent", "chosen"),
    [
        (("tensorrt", "onnxruntime"), set(), ("tensorrt", "onnxruntime")),
        (("tensorrt", "onnxruntime:cuda", "onnxruntime"), {"onnxruntime:cuda"}, ("tensorrt", "onnxruntime")),
        (("tensorrt", "onnxruntime:cuda", "onnxruntime"), set(), ("tensorrt", "onnxruntime:cuda")),
        (("tensorrt", "onnxruntime"), {"tensorrt"}, ("onnxruntime", "")),
        (("onnxruntime", "tensorrt"), set(), ("onnxruntime", "")),
        (("tensorrt",), set(), ("tensorrt", "")),
    ],
)
def test_the_first_that_can_and_the_next_that_is_quick(
    machine: set[str], prefer: tuple[str, ...], absent: set[str], chosen: tuple[str, str]
) -> None:
    machine |= absent
    settings = host.engine_settings(EngineConfig(prefer=prefer))
    assert (settings.name, settings.meanwhile) == chosen


def test_where_none_can_the_first_says_why(machine: set[str]) -> None:
    machine |= {"tensorrt", "onnxruntime"}
    with pytest.raises(MissingDependency, match="no tensorrt"):
        host.engine_settings(EngineConfig(prefer=("tensorrt", "onnxruntime")))
