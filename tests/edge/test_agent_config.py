"""agent.toml."""

from __future__ import annotations

from pathlib import Path

import pytest

from tierline.core.errors import ConfigError
from tierline.core.link.tls import TlsFiles
from tierline.edge.config import AgentConfig, load_agent

FULL = """
schema = 1
bundle = "models/vehicles"

[node]
id        = "orin-1"
parent    = "cloud.example.org:7443"
state_dir = "state"
listen    = "0.0.0.0:7443"

[engine]
prefer = ["tensorrt", "onnxruntime"]

[[source]]
view      = "cam-1"
uri       = "folder:./samples?loop=true"
queue     = "all"
in_flight = 4
budget_ms = 80

[[sink]]
uri = "jsonl:out.jsonl"

[metrics]
listen = "127.0.0.1:9464"
"""


def read(tmp_path: Path, text: str, *overrides: str, **env: str) -> AgentConfig:
    file = tmp_path / "agent.toml"
    file.write_text(text, "utf-8")
    return load_agent(file, overrides=overrides, env=env).value


def test_every_key_arrives_with_absolute_paths(tmp_path: Path) -> None:
    config = read(tmp_path, FULL)
    assert config.node.parent == "cloud.example.org:7443"
    assert config.state_dir == tmp_path / "state"
    assert config.bundle == str(tmp_path / "models" / "vehicles")
    assert config.source[0].uri == f"folder:{tmp_path}/samples?loop=true"
    assert (config.source[0].queue, config.source[0].in_flight, config.source[0].budget_ms) == ("all", 4, 80.0)
    assert config.sink[0].uri == f"jsonl:{tmp_path}/out.jsonl"
    assert config.engine.prefer == ("tensorrt", "onnxruntime")
    assert (config.engine.threads, config.engine.inline_ms, config.node.insecure) == (1, 0.5, False)
    assert config.metrics.listen == "127.0.0.1:9464"


def test_state_lies_below_the_xdg_folder_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = FULL.replace('state_dir = "state"', "")
    assert read(tmp_path, text, XDG_STATE_HOME="/x").state_dir == Path("/x/tierline/orin-1")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read(tmp_path, text).state_dir == tmp_path / ".local/state/tierline/orin-1"


def test_certificates_are_those_of_the_state_dir_unless_given(tmp_path: Path) -> None:
    assert read(tmp_path, FULL).tls_files() is None
    (tmp_path / "state" / "pki").mkdir(parents=True)
    assert read(tmp_path, FULL).tls_files() == TlsFiles.of_state(tmp_path / "state")
    given = read(tmp_path, FULL + '[tls]\nca = "a.pem"\ncert = "b.pem"\nkey = "/c.pem"')
    assert given.tls_files() == TlsFiles(tmp_path / "a.pem", tmp_path / "b.pem", Path("/c.pem"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("node.id=a/b", "agent.toml: node.id = 'a/b': 1 to 63 letters"),
        ("node.parent=cloud", "agent.toml: node.parent = 'cloud': expected host:port"),
        ("node.parent=:7443", "agent.toml: node.parent = ':7443': expected host:port"),
        ("node.listen=h:70000", "agent.toml: node.listen = 'h:70000': expected host:port"),
        ("engine.prefer=[]", r"agent.toml: engine.prefer = \[\]: name at least one engine"),
        ("source.0.in_flight=0", r"--set: source\[0\].in_flight = 0: expected a whole number >= 1"),
        ("source.0.budget_ms=-1", r"--set: source\[0\].budget_ms = -1: expected a number >= 0"),
        ("source.0.view=", r"agent.toml: source\[0\].view: is empty"),
        ("learn.state=mysql://h/d", "agent.toml: learn.state: give the URL of a PostgreSQL database, postgresql://"),
        ("learn.state=postgresql://h/d", 'agent.toml: learn.state: .*write trainer = "torch", too'),
        ("tls.ca=a.pem", "agent.toml: tls.give ca, cert and key together"),
        ('source=[{view="a",uri="x:"},{view="a",uri="y:"}]', "agent.toml: source: view 'a' is listed twice"),
    ],
)
def test_mistakes_are_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        read(tmp_path, FULL, override)


def test_a_node_with_nothing_to_do_is_refused(tmp_path: Path) -> None:
    idle = 'schema = 1\n[node]\nid = "a"\nparent = "h:1"\n'
    with pytest.raises(ConfigError, match=r"^agent.toml: neither a \[\[source\]\] nor node.listen: .* nothing to do"):
        read(tmp_path, idle)
    assert read(tmp_path, idle, "node.listen=:1").source == ()
    with pytest.raises(ConfigError, match=r"^agent.toml: neither node.parent nor bundle is set: .*; set one"):
        read(tmp_path, FULL.replace('bundle = "models/vehicles"', ""), "node.parent=")
