"""The loader: precedence, origins, and one clear line for every mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest

from tierline.core.config import Loaded, load
from tierline.core.errors import ConfigError
from tierline.core.types import Tier


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    parent: str = ""
    threads: Annotated[int, msgspec.Meta(ge=1)] = 1
    tier: Tier = Tier.EDGE

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError("id: is empty")


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    uri: str
    queue: Literal["latest", "all"] = "latest"


class Sample(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: int
    node: Node
    path: str = ""
    share: dict[str, float] = {}
    source: tuple[Part, ...] = ()
    link: str | dict[str, float] = ""
    fast: bool = False


GOOD = """
schema = 1
path = "here/x"
[node]
id = "orin-1"
parent = "cloud:7443"
[[source]]
uri = "folder:./samples?loop=true"
"""


def read(tmp_path: Path, text: str = GOOD, *overrides: str, **env: str) -> Loaded[Sample]:
    file = tmp_path / "agent.toml"
    file.write_text(text, "utf-8")
    return load(file, Sample, overrides=overrides, env=env)


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    assert read(tmp_path).value.node == Node("orin-1", "cloud:7443")
    env = {"TIERLINE_NODE_PARENT": "a:1", "TIERLINE_NODE_ID": "b"}
    loaded = read(tmp_path, GOOD, "node.parent=c:2", **env)
    assert (loaded.value.node.id, loaded.value.node.parent) == ("b", "c:2")
    assert loaded.origin["node.parent"] == "--set"
    assert loaded.origin["node.id"] == "environment TIERLINE_NODE_ID"
    assert loaded.origin["node.threads"] == "default"
    assert loaded.origin["source[0].uri"] == "file"
    assert loaded.origin["source[0].queue"] == "default"
    assert set(loaded.origin) == {
        *("schema", "node.id", "node.parent", "node.threads", "node.tier", "path", "share"),
        *("source[0].uri", "source[0].queue", "link", "fast"),
    }


def test_overrides_take_the_type_of_their_key(tmp_path: Path) -> None:
    value = read(
        tmp_path,
        GOOD,
        *("node.threads=4", "node.id=7", "share.local=0.5", "source.0.queue=all", "fast=true"),
        TIERLINE_LINK="{rtt_ms = 5}",
    ).value
    assert (value.node.threads, value.node.id, value.share, value.fast) == (4, "7", {"local": 0.5}, True)
    assert value.source == (Part("folder:./samples?loop=true", "all"),)
    assert value.link == {"rtt_ms": 5}
    assert read(tmp_path, GOOD, "link=lte").value.link == "lte"
    assert read(tmp_path, GOOD, 'source=[{uri="a:b"}]', "source[0].queue=all").value.source == (Part("a:b", "all"),)
    assert read(tmp_path, GOOD, "share.a=1", "share.b=0.5").origin["share.b"] == "--set"
    assert read(tmp_path, GOOD, "node.tier=cloud").value.node.tier is Tier.CLOUD


def edited(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (edited("parent =", "parnet ="), 'agent.toml: node.parnet: no such key; nearest is "parent"'),
        (edited("uri =", "url ="), 'agent.toml: source[0].url: no such key; nearest is "uri"'),
        (
            edited("path =", "zzz ="),
            "agent.toml: zzz: no such key; valid: schema, node, path, share, source, link, fast",
        ),
        (edited('"orin-1"', "3"), "agent.toml: node.id = 3: expected text"),
        (edited('"orin-1"', '""'), "agent.toml: node.id: is empty"),
        (edited('id = "orin-1"', ""), "agent.toml: node.id: missing, and there is no default; add it"),
        (edited("[node]", "[node]\nthreads = 0"), "agent.toml: node.threads = 0: expected a whole number >= 1"),
        (edited("[node]", "[node]\nthreads = 1.5"), "agent.toml: node.threads = 1.5: expected a whole number"),
        (edited("[node]", '[node]\ntier = "egde"'), 'agent.toml: node.tier = "egde": no such value; nearest is "edge"'),
        (GOOD + 'queue = "lates"', 'agent.toml: source[0].queue = "lates": no such value; nearest is "latest"'),
        (edited('path = "here/x"', "link = 3"), "agent.toml: link = 3: expected text or a table"),
        (edited('path = "here/x"', "fast = 1"), "agent.toml: fast = 1: expected true or false"),
        (edited('path = "here/x"', 'share = {a = "b"}'), 'agent.toml: share.a = "b": expected a number'),
        (edited('path = "here/x"', "source = 3").partition("[[")[0], "agent.toml: source = 3: expected a list"),
        (edited("schema = 1", "schema = 2"), "agent.toml: schema = 2, this version reads schema = 1"),
        (edited("schema = 1", ""), "agent.toml: schema: missing; write schema = 1"),
    ],
)
def test_a_mistake_in_the_file_names_its_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("node.parnet=x", '--set node.parnet: no such key; nearest is "parent"'),
        ("node.threads=two", '--set: node.threads = "two": expected a whole number'),
        ("node", "--set 'node': write --set table.key=value"),
        ("source.4.uri=x", "--set source.4.uri: there is no '4' in source"),
        ("node.id.x=1", "--set node.id.x: there is no 'x' in node.id"),
    ],
)
def test_a_mistake_in_a_flag_names_the_flag(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, GOOD, override)
    assert str(caught.value) == message


def test_a_mistake_in_the_environment_names_the_variable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'^TIERLINE_NODE_THREADS: node.threads = "two": expected a whole number$'):
        read(tmp_path, TIERLINE_NODE_THREADS="two")
    with pytest.raises(
        ConfigError, match=r'^TIERLINE_NODE_PARNET: agent.toml has no such key; nearest is "TIERLINE_NODE_PARENT"$'
    ):
        read(tmp_path, TIERLINE_NODE_PARNET="x")
    assert read(tmp_path, TIERLINE_DATA_DIR="x", OTHER="y").value.path == "here/x"


def test_unreadable_files_name_place_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"agent.toml: not TOML: .*line 2, column 8"):
        read(tmp_path, "schema = 1\nnode = \n")
    with pytest.raises(ConfigError, match=r"none.toml: no such file; check the path"):
        load(tmp_path / "none.toml", Sample, env={})
    (tmp_path / "latin.toml").write_bytes(b'schema = 1\npath = "\xe9"')
    with pytest.raises(ConfigError, match=r"latin.toml: byte 19 is not UTF-8"):
        load(tmp_path / "latin.toml", Sample, env={})
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path, Sample, env={})


def test_relative_paths_are_meant_from_their_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    loaded = read(tmp_path)
    assert loaded.locate("path", loaded.value.path) == str(tmp_path / "here" / "x")
    assert read(tmp_path, GOOD, "path=y").locate("path", "y") == str(elsewhere / "y")
    assert loaded.locate("path", "") == ""
    uri = "source[0].uri"
    assert loaded.locate_uri(uri, "folder:./s?loop=true") == f"folder:{tmp_path}/s?loop=true"
    assert loaded.locate_uri(uri, "./mine.py:a?b=1") == f"{tmp_path}/mine.py:a?b=1"
    assert loaded.locate_uri(uri, "python:./mine.py:f") == f"python:{tmp_path}/mine.py:f"
    for same in ("stdout", "rtsp://10.0.0.1/a", "python:mine:f", "webhook:http://h/x?y=1", "folder:/abs", "dataset:"):
        assert loaded.locate_uri(uri, same) == same
