"""What the processes of a local fleet read: their TOML files, addresses and certificates, in one folder."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from tierline.cli.toml import dumps
from tierline.cloud.config import CloudConfig, Drifting, Enrol, PlanKnobs
from tierline.cloud.config import Node as CloudNode
from tierline.cloud.hierarchy import HierarchyFile
from tierline.cloud.tuner.goal import Goal
from tierline.core.config import absolute_uri
from tierline.core.config.sections import NODE_ID, Engine, Learn, Tls
from tierline.core.errors import ConfigError
from tierline.core.plan import Hierarchy, HierarchyNode, Join
from tierline.core.types import Tier
from tierline.edge.config import AgentConfig, SinkConfig, SourceConfig
from tierline.edge.config import Node as AgentNode

HOST = "127.0.0.1"


@dataclass(frozen=True)
class FleetSpec:
    """A hierarchy to run on this machine, and the world around it."""

    hierarchy: Hierarchy
    bundle: Path
    join: Join = field(default_factory=Join)
    plan: PlanKnobs = field(default_factory=PlanKnobs)
    engine: Engine = field(default_factory=Engine)
    engines: Mapping[Tier, Engine] = field(default_factory=dict)
    """Of the nodes of a tier, instead of `engine`."""
    sources: Sequence[SourceConfig] = ()
    """By their view each goes to the node that hosts it."""
    sinks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """URIs by node id."""
    link: str | Mapping[str, Any] | Mapping[Tier, str] | None = None
    """One emulated link for all, or one by the tier of the child: `{Tier.DEVICE: "wifi", Tier.EDGE: "lte"}`."""
    learn: Mapping[str, Learn] = field(default_factory=dict)
    """By node id: who learns, and from what."""
    goal: Goal | None = None
    """What the root aims at when it tunes again."""
    tuned: Path | None = None
    """Folder that `tierline tune --out` wrote, of which `bundle` is the Bundle."""
    drift: Drifting = field(default_factory=Drifting)
    tls: bool = False
    access: bool = False
    """Whether nodes that host views listen without children, too, so that programs can ask them."""

    def root(self) -> HierarchyNode:
        """The node without a parent, which runs as the cloud. Raises ConfigError unless it is one, without views."""
        for node in self.hierarchy.nodes:
            if not NODE_ID.fullmatch(node.id):
                raise ConfigError(f"hierarchy: node id {node.id!r}: letters, digits, '.', '_' and '-' only")
        roots = [node for node in self.hierarchy.nodes if not node.parent]
        if len(roots) != 1:
            raise ConfigError(f"hierarchy: exactly one node must have no parent, found {len(roots)}")
        if roots[0].views:
            raise ConfigError(f"hierarchy: node {roots[0].id!r} has no parent and hosts views; give them to a child")
        return roots[0]

    def link_of(self, node: HierarchyNode) -> str:
        """The link between a node and its parent as the relay takes it; empty: a real connection."""
        link: Any = self.link
        if isinstance(link, Mapping) and any(isinstance(key, Tier) for key in link):
            link = link.get(node.tier)
        if isinstance(link, Mapping):
            return ",".join(f"{key}={int(value) if value == int(value) else value}" for key, value in link.items())
        return link or ""


@dataclass(frozen=True)
class Addresses:
    """Where everything listens: nodes with children, and relays by (parent, link)."""

    nodes: dict[str, str]
    relays: dict[tuple[str, str], str]


def choose_addresses(spec: FleetSpec) -> Addresses:
    """Free loopback ports, all different; they are free again when this returns, and used soon after."""
    nodes = [
        node.id
        for node in spec.hierarchy.nodes
        if not node.parent or spec.hierarchy.children(node.id) or (spec.access and node.views)
    ]
    relays = dict.fromkeys((n.parent, spec.link_of(n)) for n in spec.hierarchy.nodes if n.parent and spec.link_of(n))
    with contextlib.ExitStack() as stack:

        def free() -> str:
            taken = stack.enter_context(socket.socket())
            taken.bind((HOST, 0))
            return f"{HOST}:{taken.getsockname()[1]}"

        return Addresses({n: free() for n in nodes}, {r: free() for r in relays})


def write_files(spec: FleetSpec, folder: Path, addresses: Addresses, join_name: str = "run") -> dict[str, Path]:
    """Write hierarchy.toml, one file per node and, with TLS, certificates; the files by node id."""
    root = spec.root()
    hierarchy = HierarchyFile(
        1,
        join_name,
        str(spec.bundle.absolute()),
        spec.hierarchy.nodes,
        goal=spec.goal,
        tuned=str(spec.tuned.absolute()) if spec.tuned is not None else "",
        join=spec.join,
    )
    (folder / "hierarchy.toml").write_text(dumps(hierarchy), "utf-8")
    files = {}
    for node in spec.hierarchy.nodes:
        state_dir = folder / "state" / node.id
        state_dir.mkdir(parents=True, exist_ok=True)
        config = _cloud(spec, node, addresses) if node is root else _agent(spec, node, addresses)
        document = msgspec.to_builtins(config)
        document["node"]["state_dir"] = str(state_dir.absolute())
        files[node.id] = folder / f"{node.id}.toml"
        files[node.id].write_text(dumps(document), "utf-8")
    if spec.tls:
        certify(spec.hierarchy, folder)
    return files


def certify(hierarchy: Hierarchy, folder: Path) -> None:
    """Make an authority for this run and give every node a certificate for loopback."""
    from tierline.core.link.tls import write_identity
    from tierline.core.pki import create_authority, issue_server, use_authority

    home = folder / "authority"
    kept = (home / "ca.pem", home / "ca-key.pem")
    authority = use_authority(*kept) if kept[0].exists() else create_authority(home, "tierline local run")
    for node in hierarchy.nodes:
        certificate, key = issue_server(authority, node.id, [HOST, "localhost"])
        write_identity(folder / "state" / node.id, authority.pem, certificate, key)


def _cloud(spec: FleetSpec, node: HierarchyNode, addresses: Addresses) -> CloudConfig:
    return CloudConfig(
        schema=1,
        hierarchy="hierarchy.toml",
        bundle=str(spec.bundle.absolute()),
        node=CloudNode(node.id, addresses.nodes[node.id]),
        engine=spec.engines.get(node.tier, spec.engine),
        enrol=Enrol(),
        learn=spec.learn.get(node.id, Learn()),
        plan=spec.plan,
        drift=spec.drift,
        tls=Tls(),
    )


def _agent(spec: FleetSpec, node: HierarchyNode, addresses: Addresses) -> AgentConfig:
    link = spec.link_of(node)
    here = Path.cwd()
    sources = [source for source in spec.sources if source.view in node.views]
    return AgentConfig(
        schema=1,
        node=AgentNode(
            node.id,
            parent=addresses.relays[node.parent, link] if link else addresses.nodes[node.parent],
            listen=addresses.nodes.get(node.id, ""),
        ),
        engine=spec.engines.get(node.tier, spec.engine),
        source=tuple(msgspec.structs.replace(source, uri=absolute_uri(source.uri, here)) for source in sources),
        sink=tuple(SinkConfig(absolute_uri(uri, here)) for uri in spec.sinks.get(node.id, ())),
        learn=spec.learn.get(node.id, Learn()),
    )


def safe_name(text: str) -> str:
    """Text as part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)
