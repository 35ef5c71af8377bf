"""What `tierline up` makes of hierarchy.toml: the hierarchy and, from its table `[up]`, the world around it."""

from __future__ import annotations

from pathlib import Path

from tierline.cli.fleet_files import FleetSpec
from tierline.cli.relay.profile import parse_link
from tierline.cloud.config import PlanKnobs
from tierline.cloud.hierarchy import HierarchyFile, Up, find_bundle
from tierline.core.bundle import Bundle
from tierline.core.config import Loaded, absolute_uri
from tierline.core.errors import ConfigError
from tierline.core.flow.knobs import one_codec
from tierline.core.plan import HierarchyNode
from tierline.edge.config import SourceConfig


def answers_file(run_dir: Path, node: str) -> Path:
    """Where a node's answers go unless `up.sink` says otherwise."""
    return run_dir / f"answers-{node}.jsonl"


def fleet_spec(loaded: Loaded[HierarchyFile], run_dir: Path, bundle: Path | None = None) -> FleetSpec:
    """What to start. Raises ConfigError for what `[up]` lacks."""
    file = loaded.value
    up = file.up or Up()
    if not up.source:
        raise ConfigError(
            f'{loaded.path.name}: up.source: missing; say what the views show, e.g. [up] source = "folder:./{{view}}"'
        )
    if up.link:
        parse_link(up.link)
    uri = loaded.locate_uri("up.source", up.source)
    hosts = [node for node in file.node if node.views]
    bundle = bundle or find_bundle(loaded)
    codecs = one_codec(up.codec, Bundle.open(bundle).manifest) if up.codec else {}
    return FleetSpec(
        file.hierarchy(),
        bundle,
        plan=PlanKnobs(codecs=codecs),
        join=file.join,
        sources=[
            SourceConfig(view, uri.replace("{view}", view), in_flight=up.in_flight)
            for node in hosts
            for view in node.views
        ],
        sinks={node.id: [_sink(loaded, up, node, run_dir)] for node in hosts},
        link=up.link or None,
        goal=file.goal,
        tuned=Path(loaded.locate("tuned", file.tuned)) if file.tuned else None,
        tls=up.tls,
        access=True,
    )


def _sink(loaded: Loaded[HierarchyFile], up: Up, node: HierarchyNode, run_dir: Path) -> str:
    if up.sink:
        return loaded.locate_uri("up.sink", up.sink).replace("{node}", node.id)
    return absolute_uri(f"jsonl:{answers_file(run_dir, node.id)}", Path.cwd())
