"""An agent's start: what is wrong here is said here, whether or not the parent is in reach."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from tierline.core.errors import DataError, TierlineError
from tierline.edge.agent import run_agent
from tierline.edge.config import AgentConfig, Node, SourceConfig

NOBODY = "127.0.0.1:9"
JOINING = """
import sys
import tierline.edge.agent
from tierline.core import catalog
from tierline.core.flow.negotiate import offered_codecs
assert "webp" in offered_codecs()
for room, name in (("engine", "onnxruntime"), ("source", "dataset"), ("task", "classification")):
    catalog.load(room, name)
print(*sorted({"torch", "onnx", "onnxscript", "sklearn", "cryptography", "PIL", "rich", "typer"} & set(sys.modules)))
"""
"""What a device imports until its first sample."""


@pytest.mark.parametrize(
    ("uri", "error", "message"),
    [
        ("dataset:{}/none.npz", DataError, r"none\.npz: no such file"),
        ("dataset:{}/bad.npz", DataError, r"bad\.npz: not a readable"),
        ("folder:{}", DataError, "no images inside"),
        ("video:{}/none.mp4", DataError, r"none\.mp4: no such file"),
    ],
)
def test_a_bad_source_is_found_without_the_parent(
    tmp_path: Path, uri: str, error: type[TierlineError], message: str
) -> None:
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    config = AgentConfig(
        schema=1,
        node=Node("orin-1", parent=NOBODY, state_dir=str(tmp_path / "state")),
        source=(SourceConfig("cam-1", uri.format(tmp_path)),),
    )

    async def start() -> None:
        await asyncio.wait_for(run_agent(config, lambda line: None), 10)

    with pytest.raises(error, match=message):
        asyncio.run(start())


def test_a_joining_device_imports_nothing_that_few_need() -> None:
    result = subprocess.run([sys.executable, "-c", JOINING], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
