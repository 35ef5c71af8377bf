"""The example of networks of one's own writes what the page about it imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tierline.cli.main import main
from tierline.core.bundle import Bundle

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "own_model" / "export.py"


@pytest.mark.slow
def test_what_the_example_writes_can_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"epochs": 1, "scenes": 64, "images": 40, "frames": 3}
    options = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    subprocess.run([sys.executable, str(EXAMPLE), str(tmp_path / "own"), *options], check=True, timeout=300)
    monkeypatch.chdir(tmp_path)
    scenes = ["--task", "detection", "--data", "own/scenes"]
    for command in (
        ["import", "own/mobile.onnx", "--data", "own/digits", "--cut", "mean", "--out", "mobile"],
        ["import", "own/large.onnx", *scenes, "--cut", "relu_1", "--cut", "relu_2", "--out", "cut"],
        ["cascade", "own/small.onnx", "own/large.onnx", *scenes, "--out", "cascade"],
    ):
        assert main(["model", *command]) == 0
    assert Bundle.open(tmp_path / "cascade").manifest.labels == ["circle", "square", "triangle"]
    calibration = Bundle.open(tmp_path / "cut").manifest.calibration
    assert calibration is not None and calibration.num_samples == 40
    film = (tmp_path / "own" / "film.mjpeg").read_bytes()
    assert film.count(b"\xff\xd8\xff") == 3
