"""What a learning rule asks of the world: three effects, which it yields and a driver carries out.

`Exchange` moves messages between named nodes, `Reduce` adds up a weighted sum that nodes on the way may pre-add, and
`Compute` (see `learning.compute`) asks the Trainer. A rule writes `got = yield from exchange(...)`; the helpers below
give every answer its type. Choosing `Reduce` instead of `Exchange` is the declaration that only the sum matters.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from tierline.core.arrays import Layout, Params
from tierline.core.errors import BadFrame, ShapeMismatch
from tierline.core.types import Array, Arrays, NodeId
from tierline.learning.compute import (
    Backprop,
    Backward,
    Compute,
    Draw,
    Drawn,
    Fit,
    Fitted,
    Forward,
    Gradient,
    GradientAt,
    Job,
    Match,
    OutputsAt,
)
from tierline.learning.fixed import FRACTION_BITS, Integers, WeightedSum
from tierline.learning.patience import Within

T = TypeVar("T")

Message = Mapping[str, Array | int | float]
"""What one node tells another: named arrays and numbers. The driver copies it, so that a sender may go on writing."""

Inbox = Mapping[NodeId, Message]
"""What an Exchange brought, sorted by sender."""


@dataclass(frozen=True, slots=True, eq=False)
class Exchange:
    """Send `out`, then wait for one message of this `tag` from each node in `expect`.

    Empty `expect` is a post, empty `out` a receive. `quorum` ends the wait with that many messages, the first to arrive
    (1 is "next arrival"; a later Exchange may ask for the rest). After `within_s` the wait ends with what is there,
    possibly nothing; an `Adaptive` one follows from when messages of the tag came before. A tag serves each sender and
    each receiver once a turn.

    A message belongs to the turn it was sent in, and is read in the receiver's turn of the same number. Those of a
    `stream` are not bound to turns: they wait in the order of arrival, and each Exchange takes the oldest of each of
    `quorum` senders, whichever turn they come from. That is how rules without common rounds talk.
    """

    tag: str
    out: Mapping[NodeId, Message]
    expect: frozenset[NodeId]
    quorum: int | None = None
    within_s: Within = None
    stream: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Reduce:
    """Add `weight * value` to the sum that `group` makes for `to`; all who take part ask alike.

    Who is in `group` adds; who is in `to` waits for the sum, and says when it closes: with `quorum` members (default:
    all of `group`), or `within_s` after the first contribution. Everyone in `to` gets the same sum, whether it came in
    time or not. Who is only in `to` gives as `value` any Params of the layout it expects; for who is only in `group`
    the effect is over when it has sent. Sums are fixed-point, see `learning.fixed`: `fraction_bits` is their
    resolution.
    """

    tag: str
    value: Params
    group: frozenset[NodeId]
    to: frozenset[NodeId]
    weight: float = 1.0
    quorum: int | None = None
    within_s: Within = None
    fraction_bits: int = FRACTION_BITS


Effect = Exchange | Reduce | Compute
Effects = Generator[Effect, Any, T]
"""A generator of effects that returns a T."""


@dataclass(frozen=True, slots=True, eq=False)
class Reduced:
    """Answer to a Reduce: equal bits on every member, whatever the order of arrival."""

    layout: Layout
    total: WeightedSum
    members: tuple[NodeId, ...]
    """Whose values are in the sum, sorted."""

    @property
    def weight(self) -> float:
        """Sum of the members' weights."""
        return self.total.weight

    @property
    def sum(self) -> Params:
        """Sum of weight times value."""
        return Params(self.layout, self.total.sum().astype(np.float32))

    @property
    def mean(self) -> Params:
        """Weighted mean, rounded to float32 once."""
        return Params(self.layout, self.total.mean_as_float32())

    @property
    def integers(self) -> Integers:
        """The exact sum in units of 2^-fraction_bits: int64[num_values]."""
        return self.total.integers


def exchange(
    tag: str,
    out: Mapping[NodeId, Message],
    expect: Iterable[NodeId],
    *,
    quorum: int | None = None,
    within_s: Within = None,
    stream: bool = False,
) -> Effects[Inbox]:
    """`got = yield from exchange("x", {j: {"x": x}}, expect=peers)`."""
    got: Inbox = yield Exchange(tag, out, frozenset(expect), quorum, within_s, stream)
    return got


def tell(tag: str, to: Iterable[NodeId], message: Message, *, stream: bool = False) -> Effects[None]:
    """`yield from tell("model", workers, {"x": x.flat})`: one message to all of them, without waiting."""
    yield Exchange(tag, dict.fromkeys(to, message), frozenset(), stream=stream)


def hear(tag: str, sender: NodeId, *, stream: bool = False) -> Effects[Message]:
    """`m = yield from hear("model", t.server)`: wait for one message of one node."""
    got: Inbox = yield Exchange(tag, {}, frozenset((sender,)), stream=stream)
    return got[sender]


def reduce(
    tag: str,
    value: Params,
    group: Iterable[NodeId],
    *,
    weight: float = 1.0,
    quorum: int | None = None,
    within_s: Within = None,
    fraction_bits: int = FRACTION_BITS,
) -> Effects[Reduced]:
    """`total = yield from reduce("g", g, group=t.nodes)`."""
    members = frozenset(group)
    got: Reduced = yield Reduce(tag, value, members, members, weight, quorum, within_s, fraction_bits)
    return got


def contribute(
    tag: str,
    value: Params,
    group: Iterable[NodeId],
    to: Iterable[NodeId],
    *,
    weight: float = 1.0,
    fraction_bits: int = FRACTION_BITS,
) -> Effects[None]:
    """`yield from contribute("x", x, group=workers, to=[server], weight=n)`: add to a sum that others wait for."""
    yield Reduce(tag, value, frozenset(group), frozenset(to), weight, fraction_bits=fraction_bits)


def collect(
    tag: str,
    like: Params,
    group: Iterable[NodeId],
    to: Iterable[NodeId],
    *,
    quorum: int | None = None,
    within_s: Within = None,
    fraction_bits: int = FRACTION_BITS,
) -> Effects[Reduced]:
    """`total = yield from collect("x", x, group=workers, to=[server])`: wait for a sum that others add up."""
    got: Reduced = yield Reduce(tag, like, frozenset(group), frozenset(to), 1.0, quorum, within_s, fraction_bits)
    return got


def gradient(at: Params, batch: Arrays, terms: Iterable[Match] = ()) -> Effects[Gradient]:
    """`g = yield from gradient(x, t.batch)`."""
    got: Gradient = yield GradientAt(at, batch, tuple(terms))
    return got


def outputs(at: Params, batch: Arrays, *names: str) -> Effects[Arrays]:
    """`h = (yield from outputs(x, t.batch, "features"))["features"]`."""
    got: Arrays = yield OutputsAt(at, batch, names)
    return got


def fit(start: Params, job: Job) -> Effects[Fitted]:
    """`fitted = yield from fit(x, t.job)`."""
    got: Fitted = yield Fit(start, job)
    return got


def forward(at: Params, token: int, inputs: Arrays) -> Effects[Arrays]:
    """`features = yield from forward(x, 7, {"inputs": images})`."""
    got: Arrays = yield Forward(at, token, inputs)
    return got


def backward(token: int, gradients: Arrays) -> Effects[Backprop]:
    """`back = yield from backward(7, {"features": g})`."""
    got: Backprop = yield Backward(token, gradients)
    return got


def draw(job: Job, step: int) -> Effects[Drawn]:
    """`drawn = yield from draw(t.job, 0)`."""
    got: Drawn = yield Draw(job, step)
    return got


def params(message: Message, name: str, like: Params) -> Params:
    """The flat array `name` of a message as Params laid out like `like`.

    Raises BadFrame where the message lacks the array, ShapeMismatch where it is of another size or dtype.
    """
    flat = message.get(name)
    if not isinstance(flat, np.ndarray):
        raise BadFrame(f"message: no array {name!r}; it holds {', '.join(sorted(message)) or 'nothing'}")
    if flat.dtype != np.float32 or flat.shape != like.flat.shape:
        raise ShapeMismatch(
            f"message: {name!r} is {flat.dtype}{list(flat.shape)}, expected float32{list(like.flat.shape)}"
        )
    return Params(like.layout, flat)


def number(message: Message, name: str) -> float:
    """The number `name` of a message. Raises BadFrame where there is none."""
    value = message.get(name)
    if not isinstance(value, int | float):
        raise BadFrame(f"message: no number {name!r}; it holds {', '.join(sorted(message)) or 'nothing'}")
    return float(value)
