"""What a topology says about each node of a run, worked out once per round of its period."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tierline.core.types import NodeId
from tierline.learning.rule import Topology


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
