"""Who plays what in a run: the rules of all nodes, built from a catalogue name and its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tierline.core import catalog
from tierline.core.types import NodeId
from tierline.learning.rule import Rule

SERVER = NodeId("server")


def worker_ids(num: int) -> tuple[NodeId, ...]:
    """Names of `num` nodes, so padded that their order is the order of their numbers."""
    width = len(str(max(0, num - 1)))
    return tuple(NodeId(f"worker-{i:0{width}}") for i in range(num))


def federation(name: str, num_workers: int, options: Mapping[str, Any]) -> dict[NodeId, Rule]:
    """A server, then its workers, for the topology `star`. Raises ConfigError."""
    make = catalog.maker("strategy", name, options)
    rules: dict[NodeId, Rule] = {SERVER: make("Server")}
    return rules | {me: make("Worker") for me in worker_ids(num_workers)}


def peers(name: str, num: int, options: Mapping[str, Any]) -> dict[NodeId, Rule]:
    """Equals among themselves. Raises ConfigError."""
    make = catalog.maker("gossip", name, options)
    return {me: make("Peer") for me in worker_ids(num)}
