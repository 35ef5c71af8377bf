"""The shape of the tree: eight roots of one namespace, small files, and a core that cannot become a drawer."""

from __future__ import annotations

from pathlib import Path

import pytest

PACKAGES = {
    "protos": "v1",
    "kernels": "kernels",
    "core": "core",
    "learning": "learning",
    "models": "models",
    "edge": "edge",
    "cloud": "cloud",
    "cli": "cli",
}
# A new name here needs a reason that no room and no other package can hold it.
# fmt: off
CORE = {
    "errors", "protocols", "types", "arrays", "rng", "clock", "plan", "bundle", "catalog", "coding", "wire",
    "config", "client", "preprocess", "uri", "decide", "boxes", "pki", "invite", "candidates", "profile",
    "codec", "engine", "exit", "aggregate", "task", "source", "sink", "link", "flow", "telemetry",
}
# fmt: on
MAX_LINES = {"product": 500, "tests": 750}


def test_nothing_hides_the_namespace(root: Path) -> None:
    assert [p for r in PACKAGES for p in (root / r).glob("tierline/__init__.py")] == []


@pytest.mark.parametrize("source", PACKAGES)
def test_a_root_holds_its_package_and_nothing_else(source: str, tracked: list[str]) -> None:
    home = f"{source}/tierline/{PACKAGES[source]}/"
    files = [p for p in tracked if p.startswith(f"{source}/")]
    assert [p for p in files if not p.startswith(home)] == []
    assert f"{home}__init__.py" in files
    assert f"{home}py.typed" in files


def test_core_modules_are_a_closed_list(tracked: list[str]) -> None:
    home = "core/tierline/core/"
    names = {p.removeprefix(home).split("/")[0].removesuffix(".py") for p in tracked if p.startswith(home)}
    assert names - CORE == {"__init__", "py.typed"}


def test_python_files_are_short(root: Path, tracked: list[str]) -> None:
    written = [p for p in tracked if p.endswith(".py") and not p.endswith(("_pb2.py", "_pb2_grpc.py"))]
    lines = {p: len((root / p).read_text("utf-8").splitlines()) for p in written}
    limit = {p: MAX_LINES["tests" if p.startswith("tests/") else "product"] for p in lines}
    assert {p: n for p, n in lines.items() if n >= limit[p]} == {}
