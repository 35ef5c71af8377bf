"""`tierline up`: what it makes of hierarchy.toml, and that Ctrl-C ends everything."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tierline.cli import main
from tierline.cli.hierarchy import fleet_spec
from tierline.cloud.hierarchy import HierarchyFile, load_file
from tierline.core.bundle import Exit, Level, Manifest, Preprocess, Section, Tensor, write_bundle
from tierline.core.config import Loaded
from tierline.core.errors import ConfigError
from tierline.core.plan import Join
from tierline.core.types import Tier

HIERARCHY = """schema = 1
name = "gate"
model = "model"
[join]
by = "sequence"
[[node]]
id = "cloud"
tier = "cloud"
[[node]]
id = "edge"
tier = "edge"
parent = "cloud"
[[node]]
id = "device-0"
tier = "device"
parent = "edge"
views = ["v0"]
[[node]]
id = "device-1"
tier = "device"
parent = "edge"
views = ["v1"]
[up]
source = "folder:./samples/{view}?rate=5"
link = {rtt_ms = 50, mbit = 5.85}
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    tensor = Tensor("float32", (4,))
    section = Section("s", "x.onnx", {"image": tensor}, {"logits": tensor})
    levels = [Level(Tier.DEVICE, dict.fromkeys(("v0", "v1"), section), Exit("local"))]
    preprocess = Preprocess((8, 8), 1, (0.5,), (0.5,), (1, 2))
    manifest = Manifest(1, "m", 1, "classification", ["a"], preprocess, ["v0", "v1"], levels, {})
    write_bundle(tmp_path / "model", manifest, {"x.onnx": b""})
    (tmp_path / "gate.toml").write_text(HIERARCHY)
    return tmp_path


def read(home: Path, *overrides: str) -> Loaded[HierarchyFile]:
    return load_file(home / "gate.toml", overrides=overrides, env={})


def test_the_world_around_a_hierarchy(home: Path) -> None:
    spec = fleet_spec(read(home), home / "run")
    assert spec.bundle == home / "model"
    assert spec.join == Join(by="sequence")
    assert [(s.view, s.uri) for s in spec.sources] == [
        ("v0", f"folder:{home}/samples/v0?rate=5"),
        ("v1", f"folder:{home}/samples/v1?rate=5"),
    ]
    assert spec.sinks == {f"device-{i}": [f"jsonl:{home}/run/answers-device-{i}.jsonl"] for i in (0, 1)}
    assert [spec.link_of(node) for node in spec.hierarchy.nodes] == ["rtt_ms=50,mbit=5.85"] * 4
    assert fleet_spec(read(home, "up.sink=stdout"), home).sinks["device-1"] == ["stdout"]
    assert fleet_spec(read(home, "up.link=lte", "up.tls=true"), home).tls
    with pytest.raises(ConfigError, match=r"^no such link: 'ltee'; nearest is \"lte\""):
        fleet_spec(read(home, "up.link=ltee"), home)


def test_without_a_table_up_there_is_nothing_to_see(home: Path) -> None:
    loaded = read(home)
    bare = Loaded(loaded.path, msgspec.structs.replace(loaded.value, up=None), loaded.origin)
    with pytest.raises(ConfigError, match=r"^gate.toml: up.source: missing"):
        fleet_spec(bare, home)


STANDIN = """
import functools, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a script starts what it puts into the background
from tierline.cli import supervisor
from tierline.cli.main import main
node = (
    "import json, signal, sys\\n"
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\\n"
    "print('an answer', flush=True)\\n"
    "print(json.dumps({'event': 'ready', 'node': ''}), flush=True)\\n"
    "sys.stdin.read()"
)
command = lambda role, file: [sys.executable, "-S", "-c", node]
supervisor.Fleet = functools.partial(supervisor.Fleet, command=command)
sys.exit(main(["up", "gate.toml", "--run-dir", "run", "--set", "up.link="]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_runs_until_told_to_stop(home: Path, number: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STANDIN], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=home
    ) as process:
        assert process.stdout
        lines = [process.stdout.readline()]
        while " nodes run" not in lines[-1]:
            assert lines[-1], process.communicate()
            lines.append(process.stdout.readline())
        process.send_signal(number)
        rest, stderr = process.communicate(timeout=20)
    assert lines[0] == f"starting 4 nodes; logs in {home / 'run' / 'logs'}\n"
    assert {line for line in lines if line.startswith("ready")} == {
        f"ready: {node}\n" for node in ("cloud", "edge", "device-0", "device-1")
    }
    assert (stderr, process.returncode) == ("", 0)
    for node in ("device-0", "device-1"):
        assert f"{node} takes questions on 127.0.0.1:" in "".join(lines)
    assert rest.endswith("stopping\nall stopped\n")
    assert sum("an answer" in line for line in [*lines, *rest.splitlines()]) == 4


def test_up_ends_when_a_node_dies(home: Path) -> None:
    dying = STANDIN.replace('"sys.stdin.read()"', "\"sys.exit(7) if 'edge.toml' in sys.argv[1] else sys.stdin.read()\"")
    dying = dying.replace('-c", node]', '-c", node, str(file)]')
    result = subprocess.run([sys.executable, "-c", dying], capture_output=True, text=True, cwd=home, timeout=60)
    assert result.returncode == 14
    assert result.stderr == f"tierline: node 'edge' ended with exit code 7; see {os.fspath(home)}/run/logs/edge.log\n"


def test_up_needs_a_folder_of_its_own(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/x")
    for arguments, what in (
        ([], "--run-dir /proc/x/tierline/runs/gate-.*: cannot be written"),
        (["--run-dir", "."], f"--run-dir {home}: holds a run already"),
    ):
        (home / "logs").mkdir(exist_ok=True)
        assert main.main(["up", "gate.toml", *arguments]) == 2
        printed = capsys.readouterr()
        assert re.fullmatch(f"tierline: {what}.*\n", printed.err), printed.err
        assert printed.out == ""
