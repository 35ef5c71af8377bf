"""The wheel holds every file of the eight roots and nothing else, and asks for torch only in an extra."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

ROOTS = ("protos", "kernels", "core", "learning", "models", "edge", "cloud", "cli")


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    built = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=120)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    assert path.name.endswith("-py3-none-any.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = [n for n in wheel.namelist() if n.endswith(".dist-info/METADATA")]
    return message_from_bytes(wheel.read(name))


def test_wheel_holds_the_tracked_files(wheel: zipfile.ZipFile, tracked: list[str]) -> None:
    names = {n for n in wheel.namelist() if ".dist-info/" not in n}
    expected = {p.split("/", 1)[1] for p in tracked if p.split("/", 1)[0] in ROOTS}
    assert expected - names == set()
    assert {n for n in names if not n.startswith("tierline/")} == set()
    assert "tierline/__init__.py" not in names


def test_wheel_carries_licence_and_command(wheel: zipfile.ZipFile) -> None:
    info = {n.split(".dist-info/", 1)[1]: n for n in wheel.namelist() if ".dist-info/" in n}
    assert b"Apache License" in wheel.read(info["licenses/LICENSE"])
    assert b"tierline = tierline.cli.main:main" in wheel.read(info["entry_points.txt"])


def test_base_dependencies_are_light(metadata: Message) -> None:
    base = [r for r in metadata.get_all("Requires-Dist", []) if "extra ==" not in r]
    assert any(r.startswith("numpy") for r in base)
    assert [r for r in base if r.startswith(("torch", "onnx>", "onnxscript", "scikit", "tensorrt", "pycuda"))] == []
