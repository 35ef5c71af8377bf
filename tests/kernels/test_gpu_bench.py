"""Benchmarks of GPU codecs run, on a mock, so that a GPU met for the first time is not spent on its mistakes."""

from __future__ import annotations

import importlib.util
import json
from contextlib import closing
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tierline.cli.main import main
from tierline.cli.trial import codec as trial
from tierline.cli.trial import codec_gpu
from tierline.kernels.cuda import Codec, CudaError, Device, launch


def benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "bench_codec_gpu.py"
    spec = importlib.util.spec_from_file_location("bench_codec_gpu", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("numpy_kernels")
@pytest.mark.parametrize("gpu", ["mock discrete", pytest.param("real", marks=pytest.mark.gpu)], indirect=True)
def test_the_benchmark_runs(gpu: Device, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its exit code tells, too, where the GPU's bytes are not the CPU's."""
    module = benchmark()
    sizes = ["--mib", "0.004", "--rows", "2", "--rounds", "1"]
    monkeypatch.setattr(launch, "CANDIDATES", (launch.Geometry(),))
    assert module.main([*sizes, "--tokens", "affine", "bitplane"], gpu) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    correct = ["correct"] * (len(module.ODD_SHAPES) + 1)
    assert [line["kind"] for line in lines] == ["environment", *[*correct, "encode", "end_to_end"] * 2]
    assert {line["num_values"] for line in lines if "num_values" in line} == {524}
    assert [line["coded_bytes"] for line in lines if line["kind"] == "end_to_end"] == [2 * 532, 2 * 66]
    assert [line["limit"] for line in lines if line["kind"] == "encode"] == [None, None]
    if gpu.name == "Mock (a CPU)":
        assert module.main([*sizes], gpu) == 0  # every codec, each of which has work of its own
    monkeypatch.setattr(Codec, "encode", lambda *arguments, **options: b"")
    with gpu.current(), closing(Codec("affine", gpu)) as codec:
        assert not module.correct(gpu, codec, "affine", np.ones((1, 9), np.float32))


def test_the_benchmark_says_in_one_line_that_there_is_no_gpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> Device:
        raise CudaError("no NVIDIA driver: none here")

    module = benchmark()
    monkeypatch.setattr(module, "device", none)
    assert module.main([]) == 2
    out, error = capsys.readouterr()
    assert (out, error) == ("", "no NVIDIA driver: none here\n")


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
