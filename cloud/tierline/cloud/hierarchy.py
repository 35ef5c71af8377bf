"""hierarchy.toml: what should run. The cloud makes the Plan from it; `tierline up` starts all of it on one machine."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from tierline.cloud.tuner.goal import Goal
from tierline.core.bundle import MANIFEST
from tierline.core.config import Loaded, load
from tierline.core.config.sections import NODE_ID
from tierline.core.errors import ConfigError
from tierline.core.plan import Hierarchy, HierarchyNode, Join

SCHEMA = 1

_NAME = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(@(?P<version>\d+))?")


class Up(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How `tierline up` plays the world around the hierarchy; nothing else reads it."""

    source: str = ""
    """URI of every view's source; `{view}` stands for the view's name."""
    sink: str = ""
    """URI where answers go; `{node}` stands for the node's id. Empty: `answers-NODE.jsonl` in the run's folder."""
    link: str | dict[str, float] = ""
    """Emulated link between every child and its parent; empty: none."""
    codec: str = ""
    """Token of the codec that all features travel in; empty: what the Bundle says."""
    in_flight: Annotated[int, msgspec.Meta(ge=1)] = 1
    """Samples of one source that may wait for an answer."""
    tls: bool = False
    """Certify all nodes by an authority made for this run."""


class HierarchyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Content of hierarchy.toml."""

    schema: int
    name: str
    model: str
    """Folder of a Bundle, or NAME or NAME@VERSION of one below XDG_DATA_HOME/tierline/bundles."""
    node: tuple[HierarchyNode, ...]
    plan: Literal["auto"] = "auto"
    goal: Goal | None = None
    """What `tierline tune` aims at, and the root when it tunes again."""
    tuned: str = ""
    """Folder that `tierline tune --out` wrote: the Plan that it chose, and what it was chosen from."""
    join: Join = Join(by="none")
    up: Up | None = None

    def hierarchy(self) -> Hierarchy:
        return Hierarchy(self.node)


def load_hierarchy(path: Path) -> tuple[Hierarchy, Join]:
    """Who exists and how views are joined. Raises ConfigError."""
    file = load_file(path).value
    return file.hierarchy(), file.join


def load_file(
    path: Path, *, overrides: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> Loaded[HierarchyFile]:
    """Read and check hierarchy.toml; its shape (parents, views) is checked when a Plan is made. Raises ConfigError."""
    loaded = load(path, HierarchyFile, overrides=overrides, env=env, schema=SCHEMA)
    for index, node in enumerate(loaded.value.node):
        if not NODE_ID.fullmatch(node.id):
            raise ConfigError(
                f"{path.name}: node[{index}].id = {node.id!r}: 1 to 63 letters, digits, '.', '_' and '-', "
                "the first alphanumeric"
            )
    return loaded


def find_bundle(loaded: Loaded[HierarchyFile], env: Mapping[str, str] | None = None) -> Path:
    """The folder of the hierarchy's model. Raises ConfigError naming the places looked at."""
    model = loaded.value.model
    given = Path(loaded.locate("model", model))
    if (given / MANIFEST).is_file():
        return given
    home = (os.environ if env is None else env).get("XDG_DATA_HOME", "")
    store = (Path(home) if home else Path.home() / ".local" / "share") / "tierline" / "bundles"
    name = _NAME.fullmatch(model)
    if name:
        versions = [int(p.name) for p in (store / name["name"]).glob("*") if p.name.isdigit()]
        wanted = int(name["version"]) if name["version"] else max(versions, default=0)
        if wanted in versions:
            return store / name["name"] / str(wanted)
    raise ConfigError(
        f"{loaded.path.name}: model = {model!r}: no Bundle at {given}"
        + (f" nor below {store / name['name']}" if name else "")
        + "; write the path of a folder with bundle.json"
    )
