"""`tierline config check`: everything wrong at once, one line each, and nothing started or written."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tierline.cli import main
from tierline.cli.trial.demo import ASSETS

AGENT = """schema = 1
[node]
id = "gate"
parent = "127.0.0.1:7443"
state_dir = "state"
[[source]]
view = "view-0"
uri = "dataset:samples.npz"
[[sink]]
uri = "jsonl:answers.jsonl"
"""
CLOUD = """schema = 1
hierarchy = "gate.toml"
[node]
state_dir = "state"
"""
VIEWS = ", ".join(f'"view-{i}"' for i in range(6))
HIERARCHY = f"""schema = 1
name = "gate"
model = "bundle"
[[node]]
id = "cloud"
tier = "cloud"
[[node]]
id = "gate"
tier = "edge"
parent = "cloud"
views = [{VIEWS}]
[up]
source = "dataset:samples.npz"
sink = "jsonl:{{node}}.jsonl"
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ASSETS, tmp_path / "bundle")
    shutil.copy(ASSETS / "samples.npz", tmp_path)
    for name, text in (("agent.toml", AGENT), ("cloud.toml", CLOUD), ("gate.toml", HIERARCHY)):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listing(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize(
    ("file", "kind"), [("agent.toml", "agent"), ("cloud.toml", "cloud"), ("gate.toml", "hierarchy")]
)
def test_good_files(files: Path, file: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = listing(files)
    assert main.main(["config", "check", file]) == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == (f"{file}: good ({kind})\n", "")
    assert listing(files) == before


def damage(files: Path, name: str) -> None:
    (files / "bundle" / name).write_bytes(b"damaged")


BAD = {
    "everything of an agent": (
        "agent.toml",
        [
            'engine.prefer=["onnx", "torhc"]',
            "source.0.uri=datasett:samples.npz",
            "sink.0.uri=jsonl:none/a.jsonl",
            "bundle=none",
            "node.state_dir=/proc/none",
            "node.listen=0.0.0.0:7443",
        ],
        2,
        [
            r"node\.state_dir: state_dir /proc/none: cannot be written",
            r"node\.listen: 0\.0\.0\.0:7443: no certificate",
            r"engine\.prefer: no such engine: 'onnx'; nearest is \"onnxruntime\"",
            r"engine\.prefer: no such engine: 'torhc'; nearest is \"torch\"",
            r"bundle: .*none/bundle\.json: cannot be read",
            r"source\[0\]\.uri: source 'datasett:.*nearest is \"dataset\"",
            r"sink\[0\]\.uri: sink 'jsonl:.*cannot be opened for writing",
        ],
    ),
    "a missing file": (
        "agent.toml",
        ["source.0.uri=dataset:none.npz"],
        3,
        [r"source\[0\]\.uri: .*none\.npz: no such file"],
    ),
    "an option": (
        "agent.toml",
        ["source.0.uri=dataset:samples.npz?lop=true"],
        2,
        [r"source\[0\]\.uri: source .*no option 'lop'; nearest is \"loop\""],
    ),
    "certificates": (
        "agent.toml",
        ["tls.ca=a.pem", "tls.cert=b.pem", "tls.key=c.pem"],
        11,
        [r"tls: .*a\.pem"],
    ),
    "a threshold": ("cloud.toml", ["plan.thresholds.lokal=0.5"], 5, [r"hierarchy: threshold for 'lokal'"]),
    "no hierarchy": (
        "cloud.toml",
        ["hierarchy=none.toml", "bundle=bundle"],
        2,
        [r"hierarchy: .*none\.toml: no such file"],
    ),
    "the world around a hierarchy": (
        "gate.toml",
        ["up.source=folder:./{view}", "up.link=ltee", "up.sink=jsonl:none/a.jsonl"],
        2,
        [
            r"up\.link: .*no such link: 'ltee'",
            *(rf"up\.source: .*view-{i}: no such folder" for i in range(6)),
            r"up\.sink: .*cannot be opened",
        ],
    ),
    "a source that all views share, once": (
        "gate.toml",
        ["up.source=dataset:none.npz"],
        3,
        [r"up\.source: .*none\.npz"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_all_that_is_wrong(files: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    file, changes, code, messages = BAD[name]
    before = listing(files)
    found = main.main(["config", "check", file, *(word for change in changes for word in ("--set", change))])
    printed = capsys.readouterr()
    said = printed.err.splitlines()
    assert (found, printed.out, len(said)) == (code, "", len(messages)), said
    for line, message in zip(said, messages, strict=True):
        assert re.match(rf"tierline: {file}: {message}", line), line
    assert listing(files) == before


@pytest.mark.parametrize("file", ["cloud.toml", "gate.toml"])
def test_a_damaged_section(files: Path, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage(files, "edge.onnx")
    assert main.main(["config", "check", file]) == 4
    assert re.fullmatch(rf"tierline: {file}: \w+: .*edge\.onnx: sha256 is .*\n", capsys.readouterr().err)


def test_a_hierarchy_that_does_not_fit_its_model(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "gate.toml").write_text(HIERARCHY.replace(VIEWS, VIEWS + ', "view-6"'))
    assert main.main(["config", "check", "gate.toml"]) == 5
    assert "gate.toml: node: hierarchy: 7 views meet at 'gate'" in capsys.readouterr().err
