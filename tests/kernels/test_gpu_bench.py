"""The benchmark of GPU codecs runs, on a mock, so that a GPU met for the first time is not spent on its mistakes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tierline.kernels.cuda import Device


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
