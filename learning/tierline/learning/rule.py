"""The contracts of the learning rooms: a rule, the turn it is given, and what it may ask about its node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from tierline.core.arrays import Params
from tierline.core.rng import Key
from tierline.core.types import Array, Arrays, NodeId
from tierline.learning.effects import Effects, Gradient

State = Mapping[str, Array | int | float]
"""All that a rule must remember between turns, as named arrays and numbers."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What a rule promises and needs; drivers and laws read it."""

    tolerates_loss: bool
    """Messages may vanish: its waits have deadlines and it goes on with what came."""
    per_edge_state: bool
    """It remembers something about each neighbour, so that a gap needs `resync`."""
    conserves: Literal["mean", "mass"] | None
    """What mixing alone (no gradient) leaves unchanged, summed over all nodes."""
    directed: bool
    """It works where only one direction of an edge exists."""


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """Where a rule finds itself when it starts."""

    me: NodeId
    nodes: tuple[NodeId, ...]
    """All nodes of the run, in the order of the topology."""
    peers_in: frozenset[NodeId]
    peers_out: frozenset[NodeId]


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of one node. `w` holds the weights of what it hears, itself included; they sum to 1."""

    run: str
    round: int
    """Counts from 0."""
    me: NodeId
    lr: float
    peers_in: frozenset[NodeId]
    peers_out: frozenset[NodeId]
    w: Mapping[NodeId, float]
    nodes: tuple[NodeId, ...]
    batch: Arrays

    @property
    def num_nodes(self) -> int:
        return len(self.nodes)

    def rng(self, name: str) -> Key:
        """A stream of random words that this node alone draws in this round, the same on every run."""
        return Key(self.run, self.round, self.me, "", name)


class Rule(Protocol):
    """A learning rule: pure, one instance per node. It owns its arrays: it copies what it keeps, and never writes into
    what it was given."""

    traits: Traits
    x: Params
    """The model as of the last finished turn."""

    def start(self, x: Params, node: NodeInfo) -> None:
        """Begin from `x`, which is copied."""
        ...

    def turn(self, t: Turn) -> Effects[None]:
        """One round. If it ends early, the driver loads the state from before."""
        ...

    def resync(self, t: Turn) -> Effects[None]:
        """Rebuild what is remembered about neighbours, after a gap or a restart; no learning happens."""
        ...

    def state(self) -> State:
        """A copy of everything that `load` needs, `x` included."""
        ...

    def load(self, state: State) -> None:
        """Go back to `state`; called after `start`."""
        ...


class Reducer(Protocol):
    """A way to average one value over all nodes of a turn, exactly or compressed."""

    def mean(self, key: str, value: Params, t: Turn, *, weight: float = 1.0) -> Effects[Params]:
        """Weighted mean of every node's `value`; `key` names the value and must be unique within the turn."""
        ...

    def state(self) -> State: ...

    def load(self, state: State) -> None: ...


class Trainer(Protocol):
    """Computes on one node's data."""

    def gradient(self, at: Params, batch: Arrays) -> Gradient: ...


class Topology(Protocol):
    """Who talks to whom, and how much each counts."""

    def mixing_matrix(self, n: int) -> npt.NDArray[np.float64]:
        """float64 (n, n); row i holds what node i gives to each message it hears. Raises ConfigError for n < 1."""
        ...

    def peers(self, n: int, i: int) -> tuple[int, ...]:
        """Neighbours of node i, ascending, without i."""
        ...
