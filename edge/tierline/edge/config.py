"""agent.toml: only what is true of this machine. What the node does comes from its parent, as a Plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from tierline.core.config import Loaded, load
from tierline.core.config.sections import (
    Count,
    Engine,
    Learn,
    Metrics,
    Milliseconds,
    Tls,
    absolute_paths,
    check_address,
    check_id,
)
from tierline.core.errors import ConfigError
from tierline.core.link.tls import TlsFiles

SCHEMA = 1


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who this is and where it stands."""

    id: str
    parent: str = ""
    """host:port of the node above; empty: alone."""
    state_dir: str = ""
    """Keys and cached Bundles; empty: below XDG_STATE_HOME."""
    listen: str = ""
    """host:port for children; empty: none."""
    insecure: bool = False
    """Allow plain connections beyond this machine."""

    def __post_init__(self) -> None:
        check_id(self.id)
        check_address("parent", self.parent, host_needed=True)
        check_address("listen", self.listen)


class SourceConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One view of this machine."""

    view: str
    uri: str
    queue: Literal["latest", "all"] = "latest"
    """Of cameras and videos: `latest` drops frames that nobody had time for, and counts them. Files always wait."""
    in_flight: Count = 1
    """Samples of this source that may wait for an answer before the next is captured."""
    budget_ms: Milliseconds = 0.0
    """Time from capture to answer; 0: the Plan's."""

    def __post_init__(self) -> None:
        if not self.view:
            raise ValueError("view: is empty; name the view")


class SinkConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where answers go."""

    uri: str


class AgentConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Content of agent.toml; `load_agent` has made its paths absolute."""

    schema: int
    node: Node
    bundle: str = ""
    """Folder of a Bundle given by hand; its digest must be the parent's. Empty: fetched from the parent."""
    engine: Engine = Engine()
    source: tuple[SourceConfig, ...] = ()
    sink: tuple[SinkConfig, ...] = ()
    metrics: Metrics = Metrics()
    learn: Learn = Learn()
    tls: Tls = Tls()

    @property
    def state_dir(self) -> Path:
        return Path(self.node.state_dir)

    def tls_files(self) -> TlsFiles | None:
        """Certificate and key of this node; None for plain connections."""
        return self.tls.files(self.state_dir)


def load_agent(
    path: Path, *, overrides: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> Loaded[AgentConfig]:
    """Read and check agent.toml. Raises ConfigError."""
    loaded = load(path, AgentConfig, overrides=overrides, env=env, schema=SCHEMA)
    config = loaded.value
    views = [source.view for source in config.source]
    for view in views:
        if views.count(view) > 1:
            raise ConfigError(f"{path.name}: source: view {view!r} is listed twice; give each source its own view")
    if not config.source and not config.node.listen:
        raise ConfigError(f"{path.name}: neither a [[source]] nor node.listen: this node has nothing to do; add one")
    if not config.node.parent and not config.bundle:
        raise ConfigError(f"{path.name}: neither node.parent nor bundle is set: nothing says what to run; set one")
    value = msgspec.structs.replace(
        config,
        **absolute_paths(loaded, env),
        source=tuple(
            msgspec.structs.replace(source, uri=loaded.locate_uri(f"source[{i}].uri", source.uri))
            for i, source in enumerate(config.source)
        ),
        sink=tuple(
            msgspec.structs.replace(sink, uri=loaded.locate_uri(f"sink[{i}].uri", sink.uri))
            for i, sink in enumerate(config.sink)
        ),
    )
    return Loaded(path, value, loaded.origin)
