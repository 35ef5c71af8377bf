"""The contracts of the learning rooms: a rule, the turn it is given, and what it may ask about its node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

from tierline.core.arrays import Params
from tierline.core.rng import Key
from tierline.core.types import Array, Arrays, NodeId
from tierline.learning.compute import Backprop, Drawn, Fitted, Gradient, Job, Match
from tierline.learning.effects import Effects

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
    asynchronous: bool = False
    """Its nodes have no rounds in common and talk by streams; a run is as long as the server's turns say."""


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """Where a rule finds itself when it starts."""

    me: NodeId
    nodes: tuple[NodeId, ...]
    """All nodes of the run, in the order of the topology; where a rule has a server, it is the first."""
    peers_in: frozenset[NodeId]
    """Whom it hears in some round; `Turn` has those of its round."""
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
    job: Job = field(default_factory=Job)
    """How the experiment wants local training done; `lr` and `key` are this turn's."""

    @property
    def num_nodes(self) -> int:
        return len(self.nodes)

    @property
    def server(self) -> NodeId:
        """Where a rule's Server runs."""
        return self.nodes[0]

    @property
    def workers(self) -> tuple[NodeId, ...]:
        """Where its Workers run."""
        return self.nodes[1:]

    def rng(self, name: str) -> Key:
        """A stream of random words that this node alone draws in this round, the same on every run."""
        return Key(self.run, self.round, self.me, "", name)

    def shared_rng(self, name: str) -> Key:
        """A stream that every node draws alike in this round: decisions that need no message."""
        return Key(self.run, self.round, "", "", name)


class Rule(Protocol):
    """A learning rule: pure, one instance per node. It never writes into what it was given, and copies what it keeps
    and writes on. A file of the room `gossip` defines a `Peer`; one of `strategy` a `Server` and a `Worker`."""

    traits: Traits
    x: Params
    """The model as of the last finished turn."""

    def start(self, x: Params, node: NodeInfo) -> None:
        """Begin from `x`, which nobody writes on."""
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

    exact: ClassVar[bool]
    """The mean up to rounding; others err by as much as their files say."""

    def mean(self, key: str, value: Params, t: Turn, *, weight: float = 1.0) -> Effects[Params]:
        """Weighted mean of every node's `value`; `key` names the value and must be unique within the turn."""
        ...

    def state(self) -> State: ...

    def load(self, state: State) -> None: ...


class Trainer(Protocol):
    """Computes on one node's data. The same arguments give the same bits; it keeps nothing but what tokens name."""

    def gradient(self, at: Params, batch: Arrays, terms: tuple[Match, ...] = ()) -> Gradient: ...

    def outputs(self, at: Params, batch: Arrays, names: tuple[str, ...]) -> Arrays: ...

    def fit(self, start: Params, job: Job) -> Fitted: ...

    def forward(self, at: Params, token: int, inputs: Arrays) -> Arrays: ...

    def backward(self, token: int, gradients: Arrays) -> Backprop: ...

    def draw(self, job: Job, step: int) -> Drawn: ...


class Topology(Protocol):
    """Who talks to whom, and how much each counts; it may change from round to round, and come back."""

    def period(self, n: int) -> int:
        """After how many rounds it repeats; 1: it never changes."""
        ...

    def mixing_matrix(self, n: int, round: int = 0) -> npt.NDArray[np.float64]:
        """float64 (n, n); row i holds what node i gives to each message it hears. Raises ConfigError for n < 1."""
        ...

    def peers_in(self, n: int, i: int, round: int = 0) -> tuple[int, ...]:
        """Whom node i hears, ascending, without i."""
        ...

    def peers_out(self, n: int, i: int, round: int = 0) -> tuple[int, ...]:
        """Who hears node i, ascending, without i."""
        ...
