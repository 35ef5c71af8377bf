"""The engine that is built in the background, the one that answers meanwhile, and which are chosen."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx_models import conv_relu

from tierline.core import catalog
from tierline.core.config.sections import Engine as EngineConfig
from tierline.core.errors import ConfigError, EngineError, MissingDependency, PlanError
from tierline.core.flow import engines, host, loaded
from tierline.core.flow.engines import Awaited, OnStep, check_engine, split_token
from tierline.core.flow.levels import engine_maker
from tierline.core.flow.loaded import EngineSettings
from tierline.core.plan import Placement
from tierline.core.protocols import SectionSpec
from tierline.core.types import Arrays, TensorSpec, Tier

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


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tensorrt` is there and takes time; it computes in float8."""
    monkeypatch.setattr(loaded, "check_engine", lambda token: None)
    monkeypatch.setattr(loaded, "takes_time", lambda token: token == "tensorrt")
    known = {
        "tensorrt": ("float32", "int8", "float8_e4m3"),
        "onnxruntime": ("float32", "int8"),
        "reference": ("float32",),
    }
    monkeypatch.setattr(loaded, "precisions_of", known.__getitem__)
    monkeypatch.setattr(engines, "precisions_of", known.__getitem__)


def placement(**more: str) -> Placement:
    return Placement(Tier.EDGE, "", {}, **more)


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ({}, ("tensorrt", "onnxruntime")),
        ({"precision": "int8"}, ("tensorrt", "onnxruntime")),
        ({"precision": "float8_e4m3"}, ("tensorrt", "")),
        ({"engine": "onnxruntime"}, ("onnxruntime", "")),
        ({"engine": "reference"}, ("reference", "")),
    ],
    ids=str,
)
def test_a_plan_chooses_among_what_the_node_allows(kinds: None, asked: dict[str, str], chosen: tuple[str, str]) -> None:
    """And what answers meanwhile computes in the same precision."""
    settings = EngineSettings("tensorrt", meanwhile="onnxruntime", allowed=("tensorrt", "reference", "onnxruntime"))
    assert settings.of(placement(**asked)) == chosen


def test_what_the_node_does_not_allow_or_the_engine_not_compute_is_refused(kinds: None) -> None:
    settings = EngineSettings("onnxruntime", allowed=("onnxruntime", "reference"))
    with pytest.raises(PlanError, match=r"engine 'tensorrt': engine\.prefer of this node names onnxruntime, reference"):
        settings.of(placement(engine="tensorrt"))
    with pytest.raises(EngineError, match="'reference' does not compute in int8 here, only in float32"):
        settings.of(placement(engine="reference", precision="int8"))
    assert EngineSettings("my.py").allowed == ()


def test_an_engine_of_a_user_computes_in_float32_unless_it_says_more(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("class Mine:\n    def __init__(self, *, model, name, threads=1): ...\n")
    assert engines.precisions_of(str(tmp_path / "mine.py")) == ("float32",)
    (tmp_path / "more.py").write_text(
        "class More:\n    def __init__(self, *, model, name, threads=1): ...\n"
        "    @staticmethod\n    def precisions():\n        return ('float32', 'int8')\n"
    )
    assert engines.precisions_of(str(tmp_path / "more.py")) == ("float32", "int8")
