"""Mistakes of users against real processes: one line, a documented exit code, and the others go on."""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tierline.core import errors

EXIT_CODES = Path(__file__).parents[2] / "docs" / "exit-codes.md"

AGENT = """schema = 1
[node]
id = "{id}"
parent = "{parent}"
state_dir = "state"
[[source]]
view = "{view}"
uri = "{uri}"
"""

CLOUD = """schema = 1
hierarchy = "hierarchy.toml"
bundle = "{bundle}"
[node]
id = "cloud"
listen = "{listen}"
state_dir = "state"
"""

HIERARCHY = """schema = 1
name = "bad"
model = "{bundle}"
[[node]]
id = "cloud"
tier = "cloud"
[[node]]
id = "edge"
tier = "edge"
parent = "cloud"
views = [{views}]
[up]
source = "dataset:samples.npz"
"""
VIEWS = ", ".join(f'"view-{i}"' for i in range(6))


@pytest.fixture
def folder(tmp_path: Path, live: Any, assets: Path) -> Path:
    """Files of one good agent, one good cloud and one good hierarchy, for tests to spoil."""
    good = {"id": "device-1", "parent": live.fleet.address("edge"), "view": "view-1", "uri": "dataset:samples.npz"}
    shutil.copy(assets / "samples.npz", tmp_path)
    shutil.copytree(assets, tmp_path / "bundle")
    (tmp_path / "agent.toml").write_text(AGENT.format(**good))
    (tmp_path / "cloud.toml").write_text(CLOUD.format(bundle="bundle", listen="127.0.0.1:0"))
    (tmp_path / "hierarchy.toml").write_text(HIERARCHY.format(bundle="bundle", views=VIEWS))
    return tmp_path


def corrupt_agent(folder: Path, live: Any) -> None:
    (folder / "agent.toml").write_text("schema = 1\nnode = = 2\n")


def truncated_agent(folder: Path, live: Any) -> None:
    (folder / "agent.toml").write_bytes(b'schema = 1\n[node]\nid = "\xff\xfe')


def corrupt_hierarchy(folder: Path, live: Any) -> None:
    (folder / "hierarchy.toml").write_text('schema = 1\nname = "x\n')


def other_bundle(folder: Path, live: Any) -> None:
    manifest = folder / "bundle" / "bundle.json"
    content = json.loads(manifest.read_text())
    content["origin"]["command"] = "another training"
    manifest.write_text(json.dumps(content))


def broken_section(folder: Path, live: Any) -> None:
    (folder / "bundle" / "cloud.onnx").write_bytes(b"no model")


def broken_manifest(folder: Path, live: Any) -> None:
    manifest = folder / "bundle" / "bundle.json"
    manifest.write_bytes(manifest.read_bytes()[:200])


def newer_bundle(folder: Path, live: Any) -> None:
    manifest = folder / "bundle" / "bundle.json"
    manifest.write_text(re.sub(r'"schema": ?1', '"schema": 99', manifest.read_text(), count=1))


def no_samples(folder: Path, live: Any) -> None:
    (folder / "samples.npz").unlink()


def broken_samples(folder: Path, live: Any) -> None:
    (folder / "samples.npz").write_bytes((folder / "samples.npz").read_bytes()[:1000])


def float_samples(folder: Path, live: Any) -> None:
    np.savez(folder / "samples.npz", images=np.zeros((4, 8, 8), np.float32))


def nothing(folder: Path, live: Any) -> None:
    pass


RUN = ["edge", "run", "-c", "agent.toml"]
SERVE = ["cloud", "run", "-c", "cloud.toml"]
UP = ["up", "hierarchy.toml", "--run-dir", "run"]

BAD: dict[str, tuple[Callable[[Path, Any], None], list[str], type[errors.TierlineError], str]] = {
    "corrupt agent file": (corrupt_agent, RUN, errors.ConfigError, r"agent\.toml: not TOML: .*line 2"),
    "agent file that is no text": (truncated_agent, RUN, errors.ConfigError, r"agent\.toml: byte 24 is not UTF-8"),
    "corrupt hierarchy": (corrupt_hierarchy, SERVE, errors.ConfigError, r"hierarchy\.toml: not TOML: .*line 2"),
    "corrupt hierarchy, up": (corrupt_hierarchy, UP, errors.ConfigError, r"hierarchy\.toml: not TOML: .*line 2"),
    "unknown key": (
        nothing,
        [*RUN, "--set", "node.parnet=x"],
        errors.ConfigError,
        r'node\.parnet: .*nearest is "parent"',
    ),
    "unknown key, cloud": (
        nothing,
        [*SERVE, "--set", "plan.mod=x"],
        errors.ConfigError,
        r'plan\.mod: .*nearest is "mode"',
    ),
    "threshold out of range": (
        nothing,
        [*SERVE, "--set", "plan.thresholds.local=2"],
        errors.ConfigError,
        r"thresholds",
    ),
    "no such exit": (
        nothing,
        [*SERVE, "--set", "plan.thresholds.lokal=0.5"],
        errors.PlanError,
        r"'lokal'.* local, edge",
    ),
    "wrong Bundle digest": (
        other_bundle,
        [*RUN, "--set", "bundle=bundle"],
        errors.DigestMismatch,
        r"'device-1' has Bundle \w+\.\.\., 'edge' runs \w+\.\.\. \(digits@1\); remove `bundle`",
    ),
    "damaged Section": (broken_section, SERVE, errors.BundleError, r"cloud\.onnx"),
    "damaged manifest": (broken_manifest, SERVE, errors.BundleError, r"bundle\.json"),
    "newer Bundle": (newer_bundle, SERVE, errors.BundleError, r"schema 99, this version reads schema 1"),
    "missing Bundle": (nothing, [*SERVE, "--set", "bundle=none"], errors.BundleError, r"none"),
    "missing Bundle, agent": (nothing, [*RUN, "--set", "bundle=none"], errors.BundleError, r"none"),
    "missing Bundle, up": (nothing, [*UP, "--set", "model=none"], errors.ConfigError, r"model = 'none': no Bundle at"),
    "missing data": (no_samples, RUN, errors.DataError, r"samples\.npz: no such file"),
    "missing data, up": (no_samples, UP, errors.NodeFailed, r"'edge' .*samples\.npz: no such file.*see .*edge\.log"),
    "damaged data": (broken_samples, RUN, errors.DataError, r"samples\.npz: not a readable \.npz file"),
    "data of another dtype": (float_samples, RUN, errors.DataError, r"must be uint8 .* these are float32\[8, 8\]"),
    "view not in the plan": (
        lambda folder, live: (folder / "agent.toml").write_text(
            (folder / "agent.toml").read_text().replace('"view-1"', '"view-9"')
        ),
        RUN,
        errors.PlanError,
        r"source\.view = 'view-9': plan 1 places view-1 at 'device-1'; change the agent file or the hierarchy",
    ),
    "unknown node": (
        nothing,
        [*RUN, "--set", "node.id=device-7"],
        errors.PeerRejected,
        r"answered: plan 1 places no node 'device-7' below 'edge' \(it places device-0, device-1\)",
    ),
    "too many views": (
        lambda folder, live: (folder / "hierarchy.toml").write_text(
            HIERARCHY.format(bundle="bundle", views=VIEWS + ', "view-6"')
        ),
        SERVE,
        errors.PlanError,
        r"7 views meet at 'edge', but Bundle 'digits' takes 6",
    ),
    "an address beyond this machine, agent": (
        nothing,
        [*RUN, "--set", "node.parent=192.0.2.1:7443"],
        errors.SecurityError,
        r"192\.0\.2\.1.*(TLS|certificate)",
    ),
    "an address beyond this machine, cloud": (
        nothing,
        [*SERVE, "--set", "node.listen=0.0.0.0:7443"],
        errors.SecurityError,
        r"0\.0\.0\.0.*(TLS|certificate)",
    ),
    "no port": (nothing, [*RUN, "--set", "node.parent=localhost"], errors.ConfigError, r"node\.parent.*host:port"),
    "no such source": (
        lambda folder, live: (folder / "agent.toml").write_text(
            (folder / "agent.toml").read_text().replace("dataset:", "datasett:")
        ),
        RUN,
        errors.ConfigError,
        r'datasett.*nearest is "dataset"',
    ),
    "no such engine": (nothing, [*RUN, "--set", 'engine.prefer=["onnx"]'], errors.ConfigError, r"onnx.*nearest is"),
    "status of nobody": (
        nothing,
        ["status", "127.0.0.1:9"],
        errors.LinkUnavailable,
        r"127\.0\.0\.1:9: no node answers here",
    ),
    "demo of other data": (
        nothing,
        ["demo", "--data", "mnist"],
        errors.UsageError,
        r"digits on 6 devices; add --retrain",
    ),
    "demo over no link": (nothing, ["demo", "--link", "ltee"], errors.ConfigError, r"no such link: 'ltee'; nearest is"),
}


def documented() -> set[int]:
    return {int(code) for code in re.findall(r"^\| (\d+) \|", EXIT_CODES.read_text("utf-8"), re.MULTILINE)}


def one_line(result: Any, error: type[errors.TierlineError], pattern: str) -> None:
    """What every mistake must look like. Nodes may have logged what they did before."""
    assert "Traceback" not in result.stderr, result.stderr
    said = [line for line in result.stderr.splitlines() if not re.match(r"\d{4}-\d\d-\d\d \S+ (INFO|WARNING) ", line)]
    assert len(said) == 1, result.stderr
    assert re.match(rf"tierline: .*{pattern}", said[0]), said[0]
    assert result.returncode == error.exit_code
    assert result.returncode in documented()


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_one_line(name: str, folder: Path, live: Any, command: Any, undisturbed: None) -> None:
    spoil, arguments, error, pattern = BAD[name]
    spoil(folder, live)
    one_line(command(*arguments, cwd=folder), error, pattern)


def test_a_port_in_use(folder: Path, live: Any, command: Any, undisturbed: None) -> None:
    taken = live.fleet.address("edge")
    pattern = rf"listen = '{taken}': another process uses this port; choose another one, or stop it"
    one_line(command(*SERVE, "--set", f"node.listen={taken}", cwd=folder), errors.PortInUse, pattern)
    one_line(command(*RUN, "--set", f"node.listen={taken}", cwd=folder), errors.PortInUse, pattern)


def test_a_metrics_port_in_use(folder: Path, live: Any, command: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = command(*SERVE, "--set", f"metrics.listen={address}", cwd=folder)
    one_line(result, errors.PortInUse, rf"metrics address {address} is taken; choose another one")
