"""The command line as users run it: real processes, one clear line for every mistake, documented exit codes."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.configs import AGENT

from tierline.cli import app, main, signals
from tierline.core import errors

HIERARCHY = """schema = 1
name = "gate"
model = "no-such-model"
[[node]]
id = "cloud"
tier = "cloud"
[[node]]
id = "orin-1"
tier = "edge"
parent = "cloud"
views = ["cam-1"]
"""


def run(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """`tierline ...` as a process; stray settings of this shell do not count."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("TIERLINE_")}
    return subprocess.run(
        [sys.executable, "-m", "tierline.cli.main", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**clean, "XDG_STATE_HOME": str(cwd / "xdg"), "XDG_DATA_HOME": str(cwd / "data"), **env},
        timeout=60,
    )


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "agent.toml").write_text(AGENT)
    (tmp_path / "gate.toml").write_text(HIERARCHY)
    (tmp_path / "corrupt.toml").write_text("schema = 1\nnode = = 2\n")
    (tmp_path / "unknown.toml").write_text(AGENT.replace("parent", "parnet"))
    return tmp_path


BAD = [
    (["edge", "run", "-c", "corrupt.toml"], 2, r"corrupt.toml: not TOML: .*line 2, column 8"),
    (["edge", "run", "-c", "unknown.toml"], 2, r'unknown.toml: node.parnet: no such key; nearest is "parent"'),
    (["edge", "run", "-c", "none.toml"], 2, r"none.toml: no such file; check the path"),
    (["cloud", "run", "-c", "agent.toml"], 2, r"agent.toml: node.parent: no such key"),
    (["edge", "run", "-c", "agent.toml", "--set", "node.threads=2"], 2, r"--set node.threads: no such key"),
    (["edge", "run", "--fast"], 2, r"unrecognized arguments: --fast; see `tierline edge run --help`"),
    (["edge", "run", "--log-level", "LOUD"], 2, r"argument --log-level: invalid choice: 'LOUD'"),
    (["edgee"], 2, r'no command \'edgee\'; nearest is "edge"'),
    (["node", "lss"], 2, r"no such command 'lss'"),
    (["bench"], 2, r"missing command; see `tierline bench --help`"),
    (["node"], 2, r"missing command; see `tierline node --help`"),
    (["up"], 2, r"missing argument .*; see `tierline up --help`"),
    (["up", "none.toml"], 2, r"none.toml: no such file"),
    (["up", "gate.toml"], 2, r"gate.toml: up.source: missing; say what the views show"),
    (["up", "gate.toml", "--set", "up.source=folder:."], 2, r"gate.toml: model = 'no-such-model': no Bundle at "),
    (["up", "gate.toml", "--set", "up.source=a:", "--set", "up.link=ltee"], 2, r"no such link: 'ltee'; nearest is"),
    (["config", "check", "corrupt.toml"], 2, r"corrupt.toml: not TOML"),
    (["config", "check", "gate.toml"], 2, r"gate.toml: model = 'no-such-model'"),
    (["config", "show", "agent.toml", "--format", "xml"], 2, r"invalid value for '--format'"),
    (["config", "show", "agent.toml", "--output", "no/where"], 2, r"--output no/where: cannot be written"),
    (["algo", "show", "codec", "affin"], 2, r'no such codec: \'affin\'; nearest is "affine"'),
    (["algo", "ls", "codecs"], 2, r'no such room: \'codecs\'; nearest is "codec"'),
    (["status", "nowhere"], 2, r"address 'nowhere': expected host:port"),
    (["status", "127.0.0.1:9"], 8, r"127.0.0.1:9: no node answers here"),
    (["cloud", "init"], 2, r"missing option .*--host"),
    (["cloud", "init", "--host", "a", "--ca-key", "k"], 2, r"give --ca-cert and --ca-key together"),
    (["node", "invite", "bad id", "--address", "a:1"], 2, r"node id = 'bad id': 1 to 63 letters, digits"),
    (["demo", "--link", "lte,stall_share=2"], 2, r"link: stall_share = 2 must be at least 0 and less than 1"),
    (["node", "join", "tl1.x"], 11, r"the invitation was not copied whole"),
    (["node", "revoke", "a"], 11, r"no fleet is kept here; run `tierline cloud init` first"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), BAD)
def test_a_mistake_is_one_line_and_an_exit_code(
    files: Path,
    arguments: list[str],
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(files)
    monkeypatch.setenv("XDG_STATE_HOME", str(files / "xdg"))
    monkeypatch.setenv("XDG_DATA_HOME", str(files / "data"))
    found = main.main(arguments)
    printed = capsys.readouterr()
    assert re.fullmatch(f"tierline: .*{message}.*\n", printed.err), printed.err
    assert (found, printed.out) == (code, "")


@pytest.mark.parametrize(("arguments", "code", "message"), [*BAD[:3], *BAD[6:8]])
def test_so_it_is_for_a_process(files: Path, arguments: list[str], code: int, message: str) -> None:
    result = run(*arguments, cwd=files)
    assert re.fullmatch(f"tierline: .*{message}.*\n", result.stderr), result.stderr
    assert (result.returncode, result.stdout) == (code, "")


def test_version_and_help(files: Path) -> None:
    assert re.fullmatch(r"tierline \S.*\n", run("--version", cwd=files).stdout)
    for arguments in ([], ["--help"]):
        text = run(*arguments, cwd=files).stdout
        assert [name for name in app.COMMANDS if not re.search(rf"^  {name} +\S", text, re.MULTILINE)] == []
    for arguments in (["-h"], ["bench", "-h"], ["cloud", "init", "-h"], ["demo", "-h"]):
        assert run(*arguments, cwd=files).stdout.startswith("Usage: tierline")
    assert "--stop-with-stdin" in run("edge", "run", "--help", cwd=files).stdout
    assert "--host" in run("cloud", "init", "--help", cwd=files).stdout


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(arguments: object) -> int:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(app, "run_app", broken)
    assert main.main(["algo", "ls"]) == main.EXIT_BUG == 70
    stderr = capsys.readouterr().err
    assert "Traceback" in stderr
    assert "this is a bug of tierline" in stderr


def test_every_exit_code_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "exit-codes.md").read_text("utf-8")
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    pending, used = [errors.TierlineError], {0, main.EXIT_BUG, main.EXIT_INTERRUPTED, signals.EXIT_TERMINATED}
    while pending:
        cls = pending.pop()
        used.add(cls.exit_code)
        pending.extend(cls.__subclasses__())
    assert documented == used


def test_config_show_tells_origins_in_three_formats(files: Path) -> None:
    def show(*arguments: str) -> str:
        command = ("config", "show", "agent.toml", "--set", "node.listen=127.0.0.1:0", *arguments)
        result = run(*command, cwd=files, TIERLINE_ENGINE_THREADS="2")
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout

    rows = {row["key"]: row for row in json.loads(show("--format", "json"))}
    assert rows["node.listen"] == {"key": "node.listen", "value": "127.0.0.1:0", "origin": "--set"}
    assert rows["engine.threads"]["origin"] == "environment TIERLINE_ENGINE_THREADS"
    assert rows["node.id"]["origin"] == "file"
    assert rows["node.insecure"] == {"key": "node.insecure", "value": False, "origin": "default"}
    listed = list(csv.DictReader(io.StringIO(show("--format", "csv"))))
    assert [row["key"] for row in listed] == list(rows)
    assert re.search(r"^node.id +orin-1 +file$", show("--origin"), re.MULTILINE)
    assert show("--output", "effective.toml") == ""
    assert 'uri = "folder:' + str(files / "samples") in (files / "effective.toml").read_text()


def test_doctor_passes_here_and_names_the_fix_elsewhere(files: Path) -> None:
    result = run("doctor", "--format", "json", cwd=files)
    checks: dict[str, Any] = {check["check"]: check for check in json.loads(result.stdout)}
    assert result.returncode == 0
    assert checks["onnxruntime runs a model"]["state"] == "ok"
    assert all(check["fix"] for check in checks.values() if check["state"] != "ok")
    assert not (files / "xdg").exists()


def test_onnxruntime_leaves_no_trace(files: Path) -> None:
    home = files / "home"
    home.mkdir()
    here = {"HOME": str(home), "TMPDIR": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    assert run("doctor", cwd=files, **here).returncode == 0
    assert list(home.rglob("*")) == []


def test_doctor_fails_where_state_cannot_be_written(files: Path) -> None:
    result = run("doctor", "--state-dir", "/proc/tierline", "--format", "json", cwd=files)
    (state,) = [check for check in json.loads(result.stdout) if check["check"] == "state folder"]
    assert (state["state"], result.returncode) == ("fail", 1)
    assert state["fix"].startswith("make /proc writable, or set node.state_dir")


def test_algorithms_are_listed_and_explained(files: Path) -> None:
    rows = json.loads(run("algo", "ls", "codec", "--format", "json", cwd=files).stdout)
    assert {"affine", "bitplane", "float16", "raw"} <= {row["name"] for row in rows}
    assert all(row["what"].endswith(".") for row in rows)
    halves = run("algo", "show", "strategy", "fedprox", cwd=files).stdout
    assert "Options of its Server:\n  share: float = 1.0\n" in halves
    assert "Options of its Worker:\n  mu: float = 0.01\n" in halves
    shown = run("algo", "show", "engine", "onnxruntime", cwd=files).stdout
    assert "ONNX Runtime" in shown
    assert "  threads: int = 1\n" in shown


def test_a_fleet_is_certified_from_the_command_line(files: Path) -> None:
    made = run("cloud", "init", "--host", "127.0.0.1", "--format", "json", cwd=files)
    assert made.returncode == 0, made.stderr
    assert Path(json.loads(made.stdout)["certificate"]) == files / "xdg" / "tierline" / "cloud" / "pki" / "cert.pem"
    line = run("node", "invite", "orin-1", "--address", "127.0.0.1:9", cwd=files).stdout
    assert line.startswith("tl1.")
    # Nobody enrols at this address.
    assert run("node", "join", line.strip(), cwd=files).returncode == 8
    rows = json.loads(run("node", "ls", "--format", "json", cwd=files).stdout)
    assert [(row["node"], row["state"]) for row in rows] == [("cloud", "enrolled"), ("orin-1", "invited")]
    assert run("node", "revoke", "orin-1", cwd=files).stdout.startswith("orin-1: revoked")
    assert [row["node"] for row in json.loads(run("node", "ls", "--format", "json", cwd=files).stdout)] == ["cloud"]
    again = run("node", "revoke", "orin-2", cwd=files)
    assert (again.returncode, "'orin-2': never invited here" in again.stderr) == (11, True)


STANDIN = """
import asyncio, logging, sys, types
node = types.ModuleType("tierline.edge.agent")
async def run_agent(config, ready):
    logging.getLogger("tierline.edge").warning("two\\nlines")
    ready({"event": "ready", "node": config.node.id, "listen": None})
    try:
        await asyncio.Event().wait()
    finally:
        print("cleaned up", file=sys.stderr)
node.run_agent = run_agent
sys.modules["tierline.edge.agent"] = node
from tierline.cli.main import main
code = main(["edge", "run", "-c", "agent.toml", *sys.argv[1:]])
heavy = {"typer", "rich", "torch", "cryptography"} & set(sys.modules)
print("heavy:", *sorted(heavy), file=sys.stderr)
sys.exit(code)
"""


def start(files: Path, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", STANDIN, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=files,
    )
    assert process.stdout
    assert json.loads(process.stdout.readline()) == {"event": "ready", "node": "orin-1", "listen": None}
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_node_stops_cleanly_and_carries_nothing_heavy(files: Path, number: int) -> None:
    process = start(files)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=20)
    log, *rest = stderr.splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \S+ WARNING orin-1 two lines", log)
    assert rest == ["cleaned up", "heavy:"]
    assert process.returncode == 0


def test_a_node_can_stop_with_its_standard_input(files: Path) -> None:
    process = start(files, "--stop-with-stdin", "--log-level", "error")
    _, stderr = process.communicate(timeout=20)
    assert stderr.splitlines() == ["cleaned up", "heavy:"]
    assert process.returncode == 0
