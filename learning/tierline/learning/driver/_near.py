"""What a topology says about each node of a run, worked out once per round of its period."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tierline.core.errors import ConfigError
from tierline.core.types import NodeId
from tierline.learning.rule import NodeInfo, Rule, Topology


@dataclass(frozen=True, slots=True)
class Near:
    """A node's neighbours in one round; `w` are the weights of those it hears and itself."""

    peers_in: frozenset[NodeId]
    peers_out: frozenset[NodeId]
    w: Mapping[NodeId, float]


def phases(topology: Topology, nodes: Sequence[NodeId]) -> dict[NodeId, tuple[Near, ...]]:
    """By node, one Near per round of the period. Raises ConfigError."""
    n = len(nodes)
    found: dict[NodeId, list[Near]] = {me: [] for me in nodes}
    for round in range(topology.period(n)):
        matrix = topology.mixing_matrix(n, round)
        for i, me in enumerate(nodes):
            heard, told = topology.peers_in(n, i, round), topology.peers_out(n, i, round)
            w = {nodes[j]: float(matrix[i, j]) for j in (i, *heard)}
            found[me].append(Near(frozenset(nodes[j] for j in heard), frozenset(nodes[j] for j in told), w))
    return {me: tuple(near) for me, near in found.items()}


def is_directed(near: Mapping[NodeId, tuple[Near, ...]]) -> bool:
    """Some edge has one direction only, in some round."""
    return any(phase.peers_in != phase.peers_out for phases in near.values() for phase in phases)


def seat(me: NodeId, near: Mapping[NodeId, tuple[Near, ...]], rule: Rule, *, directed: bool) -> NodeInfo:
    """Where a node's rule finds itself. Raises ConfigError where the rule cannot work there."""
    if directed and not rule.traits.directed:
        raise ConfigError(f"topology: edges of one direction, but the rule of {me} needs both")
    if len(near[me]) > 1 and rule.traits.per_edge_state:
        raise ConfigError(f"topology: neighbours that change, but the rule of {me} remembers its own")
    heard = frozenset[NodeId]().union(*(phase.peers_in for phase in near[me]))
    told = frozenset[NodeId]().union(*(phase.peers_out for phase in near[me]))
    return NodeInfo(me, tuple(near), heard, told)
