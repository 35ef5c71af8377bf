"""Committed stubs belong to their protos and come from the oldest supported toolchain; CI compares their content."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def folder(root: Path) -> Path:
    return root / "protos" / "tierline" / "v1"


def test_every_proto_has_its_stubs_and_every_stub_its_proto(folder: Path) -> None:
    expected = set()
    for proto in folder.glob("*.proto"):
        kinds = ["_pb2.py", "_pb2.pyi"]
        if re.search(r"^service ", proto.read_text("utf-8"), re.MULTILINE):
            kinds += ["_pb2_grpc.py", "_pb2_grpc.pyi"]
        expected |= {proto.stem + kind for kind in kinds}
    assert {p.name for p in folder.glob("*_pb2*.py*")} == expected


def test_stubs_load_on_the_oldest_supported_runtime(root: Path, folder: Path) -> None:
    project = (root / "pyproject.toml").read_text("utf-8")
    for package, pattern, stub in (
        ("protobuf", r"^# Protobuf Python Version: (\d+\.\d+)", "*_pb2.py"),
        ("grpcio", r"^GRPC_GENERATED_VERSION = '(\d+\.\d+)", "*_pb2_grpc.py"),
    ):
        for path in folder.glob(stub):
            made = re.search(pattern, path.read_text("utf-8"), re.MULTILINE)
            assert made is not None, path.name
            assert f'"{package}>={made.group(1)}"' in project, path.name
