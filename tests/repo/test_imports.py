"""A node runs with frameworks absent, and the import contract of the rooms refuses what it should."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import grimp
import pytest

FRAMEWORKS = ["torch", "tensorrt", "pycuda", "sklearn", "onnx", "onnxscript", "matplotlib"]


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(root / "tools" / "import_all.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("package", ["tierline.core", "tierline.edge"])
def test_a_node_imports_without_any_framework(root: Path, package: str) -> None:
    done = run(root, package, "--block", *FRAMEWORKS)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_proof_fails_where_a_module_is_absent(root: Path) -> None:
    done = run(root, "tierline.core", "--block", "numpy")
    assert done.returncode == 1
    assert "tierline.core." in done.stderr


@pytest.fixture(scope="module")
def contracts(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("room_contracts", root / "tools" / "contracts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("imports", "chains"),
    [
        ([("a", "_x")], []),
        ([("a", "b")], ["room.a -> room.b"]),
        ([("b", "a")], ["room.b -> room.a"]),
        ([("a", "_x"), ("_x", "b")], ["room.a -> room._x -> room.b"]),
    ],
)
def test_algorithms_share_only_private_modules(
    contracts: ModuleType, imports: list[tuple[str, str]], chains: list[str]
) -> None:
    graph = grimp.ImportGraph()
    for module in ("room", "room.a", "room.b", "room._x"):
        graph.add_module(module)
    for importer, imported in imports:
        graph.add_import(importer=f"room.{importer}", imported=f"room.{imported}")
    contract = contracts.RoomsContract("rooms", {}, {"rooms": ["room"]})
    check = contract.check(graph, verbose=False)
    assert check.metadata["chains"] == chains
    assert check.kept == (not chains)
