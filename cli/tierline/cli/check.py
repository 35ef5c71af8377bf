"""The checks behind `tierline config check`: all that a start would stumble over, and nothing is started or written.

Users' own `.py` files are loaded, since only that shows what they define.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

from tierline.cli.folders import check_new_folder
from tierline.cli.relay.profile import parse_link
from tierline.cloud.config import CloudConfig
from tierline.cloud.hierarchy import HierarchyFile, Up, find_bundle
from tierline.cloud.server import load as load_plan
from tierline.core import catalog
from tierline.core.bundle import Bundle
from tierline.core.config import Loaded
from tierline.core.config.sections import Engine
from tierline.core.errors import TierlineError
from tierline.core.flow.engines import split_token
from tierline.core.flow.host import engine_settings
from tierline.core.link.tls import check_files, require_tls
from tierline.core.plan import Placement, place
from tierline.core.uri import open_sink, open_source
from tierline.edge.agent import open_view, plan_alone
from tierline.edge.config import AgentConfig


class Findings:
    """Errors found in one file, each with the key it is about; the same one only once."""

    def __init__(self, file: Path) -> None:
        self._name = file.name
        self._found: dict[str, TierlineError] = {}

    @contextlib.contextmanager
    def at(self, key: str) -> Iterator[None]:
        """Keep the error that the value of `key` raises."""
        try:
            yield
        except TierlineError as error:
            what = " ".join(str(error).removeprefix(f"{self._name}: ").splitlines())
            message = f"{self._name}: {what if what.startswith(key) else f'{key}: {what}'}"
            self._found.setdefault(message, type(error)(message))

    def errors(self) -> list[TierlineError]:
        return list(self._found.values())


def check_agent(loaded: Loaded[AgentConfig]) -> list[TierlineError]:
    """What is wrong with agent.toml beyond its keys and types."""
    config, found = loaded.value, Findings(loaded.path)
    _check_node(config, found)
    with found.at("node.parent"):
        if config.node.parent:
            require_tls(config.node.parent, config.tls_files(), config.node.insecure)
    if config.bundle:
        with found.at("bundle"):
            bundle = _whole_bundle(Path(config.bundle))
            if not config.node.parent:
                plan_alone(config, bundle)
    for index, source in enumerate(config.source):
        with found.at(f"source[{index}].uri"):
            asyncio.run(open_view(source, index).check())
    for index, sink in enumerate(config.sink):
        with found.at(f"sink[{index}].uri"):
            open_sink(sink.uri)
    return found.errors()


def check_cloud(loaded: Loaded[CloudConfig]) -> list[TierlineError]:
    """What is wrong with cloud.toml, its hierarchy and its Bundle."""
    config, found = loaded.value, Findings(loaded.path)
    _check_node(config, found)
    with found.at("bundle"):
        _whole_bundle(Path(config.bundle))
    if not found.errors() or Path(config.bundle).is_dir():
        with found.at("hierarchy"):
            load_plan(config)
    return found.errors()


def check_hierarchy(loaded: Loaded[HierarchyFile]) -> list[TierlineError]:
    """What is wrong with hierarchy.toml: can its model run on it, and can `tierline up` play the world around it?"""
    found = Findings(loaded.path)
    bundle: Bundle | None = None
    placed: dict[str, Placement] = {}
    with found.at("model"):
        bundle = _whole_bundle(find_bundle(loaded))
    if bundle is not None:
        with found.at("node"):
            placed = place(loaded.value.hierarchy(), bundle.manifest)
    if loaded.value.up is not None:
        _check_up(loaded, loaded.value.up, bundle, placed, found)
    return found.errors()


def _check_up(
    loaded: Loaded[HierarchyFile], up: Up, bundle: Bundle | None, placed: dict[str, Placement], found: Findings
) -> None:
    with found.at("up.link"):
        if up.link:
            parse_link(up.link)
    roles = {view: role for placement in placed.values() for view, role in placement.views.items()}
    for node in loaded.value.node:
        for view in node.views if up.source else ():
            column = bundle.manifest.views.index(roles[view]) if bundle is not None and view in roles else 0
            with found.at("up.source"):
                uri = loaded.locate_uri("up.source", up.source).replace("{view}", view)
                asyncio.run(open_source(uri, view, column).check())
    for node in loaded.value.node:
        if node.views and up.sink:
            with found.at("up.sink"):
                open_sink(loaded.locate_uri("up.sink", up.sink).replace("{node}", node.id))


def _check_node(config: AgentConfig | CloudConfig, found: Findings) -> None:
    """What the files of agents and clouds share."""
    with found.at("node.state_dir"):
        check_new_folder("state_dir", config.state_dir)
    tls = config.tls_files()
    with found.at("tls"):
        if tls is not None:
            check_files(tls)
    with found.at("node.listen"):
        if config.node.listen:
            require_tls(config.node.listen, tls, config.node.insecure)
    _check_engine(config.engine, found)
    if config.learn.trainer:
        from tierline.learning.fleet.seat import load_trainer  # loads the framework, as a start would

        with found.at("learn"):
            load_trainer(config.learn)


def _check_engine(engine: Engine, found: Findings) -> None:
    names = [split_token(token)[0] for token in engine.prefer]
    unknown = [name for name in names if not name.endswith(".py") and name not in catalog.names("engine")]
    for name in unknown:
        with found.at("engine.prefer"):
            catalog.load("engine", name)
    if not unknown:
        with found.at("engine.prefer"):
            engine_settings(engine)


def _whole_bundle(folder: Path) -> Bundle:
    """Open a Bundle and check every file's digest. Raises BundleError."""
    bundle = Bundle.open(folder)
    for file in bundle.manifest.files:
        bundle.read(file)
    return bundle
