"""Benchmarks of GPU codecs run, on a mock, so that a GPU met for the first time is not spent on its mistakes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tierline.cli.main import main
from tierline.cli.trial import codec as trial
from tierline.cli.trial import codec_gpu
from tierline.kernels.cuda import Codec, Device


def test_the_benchmark_runs(gpu: Device, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "bench_codec_gpu.py"
    spec = importlib.util.spec_from_file_location("bench_codec_gpu", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sizes = ["--mib", "0.004", "--rows", "2", "--rounds", "1"]
    assert module.main([*sizes, "--tokens", "affine", "bitplane"], gpu) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["kind"] for line in lines] == ["environment", *["encode", "end_to_end"] * 2]
    assert [line["num_values"] for line in lines[1:]] == [524] * 4
    assert [line["coded_bytes"] for line in lines if line["kind"] == "end_to_end"] == [2 * 532, 2 * 66]
    assert [line["limit"] for line in lines if line["kind"] == "encode"] == [None, None]


@pytest.mark.parametrize("gpu", ["mock discrete", pytest.param("real", marks=pytest.mark.gpu)], indirect=True)
def test_bench_codec_on_a_gpu(gpu: Device, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes and errors are the CPU's; what has no GPU path has a row that says so."""
    monkeypatch.setattr(trial, "SECONDS", 0.0)
    monkeypatch.setattr(codec_gpu, "device", lambda: gpu)
    monkeypatch.setattr(Codec, "warmup", lambda codec, shape: None)  # measures launches, for long on a mock
    monkeypatch.setattr("tierline.kernels.build.library", lambda: None)  # the fixture's empty cache holds none
    monkeypatch.setenv("TIERLINE_KERNELS", "numpy")
    words = ["bench", "codec", "--shape=2x3x4x8", "--format=json"]
    words += [f"--codec={token}" for token in ("affine:4", "bitplane", "affine:4:channel", "affine+zstd", "webp")]

    def rows(*more: str) -> list[dict[str, object]]:
        assert main([*words, *more]) == 0
        found: list[dict[str, object]] = json.loads(capsys.readouterr().out)["codecs"]
        return found

    there, here = rows("--device=cuda"), rows()
    same = ("codec", "bytes", "max_error", "rms_error")
    assert [[row[key] for key in same] for row in there[:-1]] == [[row[key] for key in same] for row in here[:-1]]
    assert (there[-1]["bytes"], "does not run on a GPU" in str(there[-1]["note"])) == (None, True)
    assert main(["bench", "codec", "--dtype=uint8", "--shape=2x8", "--device=cuda"]) == 6
    assert "codecs there take float32, not uint8" in capsys.readouterr().err
