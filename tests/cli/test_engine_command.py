"""`tierline engine build|ls|rm`."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from tierline.cli import main
from tierline.cli.trial.demo import ASSETS
from tierline.core.engine._cache import EngineCache, Key

KEY = Key("00", "tensorrt", "10.3.0", "sm_87", "Orin (nvgpu)", "aarch64", "R36.4.3", 32, 1, 0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineCache:
    monkeypatch.setenv("TIERLINE_CACHE_DIR", str(tmp_path / "cache"))
    return EngineCache()


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and the one line of an error."""
    code = main.main(["engine", *arguments])
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("tierline: ") and printed.err.count("\n") == 1, printed.err
    return code, printed.err


def test_kept_engines_are_listed_and_removed(cache: EngineCache, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["engine", "ls"]) == 0
    good = cache.store(KEY, b"plan", section="edge", precision="fp16")
    bad = good.with_name("a-broken.engine")
    bad.write_bytes(good.read_bytes()[:-1])
    capsys.readouterr()
    assert main.main(["engine", "ls", "--format", "json"]) == 0
    rows = {row["file"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows[good.name] == {
        "file": good.name,
        "section": "edge",
        "precision": "fp16",
        "batches": "1-32",
        "made by": "tensorrt 10.3.0",
        "for": "Orin (nvgpu) sm_87 aarch64 R36.4.3",
        "bytes": 4,
        "problem": "",
    }
    assert "not what its head says" in rows[bad.name]["problem"]
    assert fails(capsys, "rm", "zzz")[0] == 7
    assert fails(capsys, "rm")[0] == fails(capsys, "rm", "a", "--all")[0] == 2
    assert main.main(["engine", "rm", "a-bro"]) == 0
    assert (bad.exists(), good.exists()) == (False, True)
    assert main.main(["engine", "rm", "--all"]) == 0
    assert not good.exists()


def test_what_cannot_be_built_is_said_before_anything_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = fails(capsys, "build", str(ASSETS), "--section", "egde")
    assert (code, "no Section 'egde'; nearest is \"edge\"" in line) == (2, True)
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "tierline.core.engine.tensorrt", raising=False)
    code, line = fails(capsys, "build", str(ASSETS))
    assert (code, "needs TensorRT" in line) == (13, True)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TIERLINE_CACHE_DIR", str(tmp_path / "file"))
    code, line = fails(capsys, "build", str(ASSETS))
    assert (code, "engines cannot be kept here" in line) == (7, True)


@pytest.mark.tensorrt
def test_a_bundle_is_built_for_another_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None or importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("needs tensorrt_rtx and no tensorrt, which builds for its own machine")
    arguments = ["engine", "build", str(ASSETS), "--arch", "sm_86", "--max-batch", "8", "--format", "json"]
    for built in ("now", "before"):
        assert main.main(arguments) == 0
        rows = json.loads(capsys.readouterr().out)
        assert {row["section"]: row["built"] for row in rows} == {
            **{f"device-{i}": built for i in range(6)},
            "edge": built,
            "cloud": built,
        }
    assert main.main(["engine", "ls", "--format", "json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {(row["precision"], row["batches"], row["for"].split()[1], row["problem"]) for row in listed} == {
        ("fp32", "1-8", "sm_86", "")
    }
