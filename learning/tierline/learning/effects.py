"""What a learning rule asks of the world: three effects, which it yields and a driver carries out.

`Exchange` moves messages between named nodes, `Reduce` adds up a weighted sum that nodes on the way may pre-add, and
`Compute` asks the Trainer. A rule writes `got = yield from exchange(...)`; the helpers below give every answer its
type. Choosing `Reduce` instead of `Exchange` is the declaration that only the sum matters.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from tierline.core.arrays import Layout, Params
from tierline.core.errors import BadFrame, ShapeMismatch
from tierline.core.types import Array, Arrays, NodeId
from tierline.learning.fixed import FRACTION_BITS, Integers, WeightedSum

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
    possibly nothing. A tag serves each sender and each receiver once a turn.
    """

    tag: str
    out: Mapping[NodeId, Message]
    expect: frozenset[NodeId]
    quorum: int | None = None
    within_s: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Reduce:
    """Add `weight * value` to the sum of `group`, and wait for that sum; all members ask alike.

    The sum closes with `quorum` members (default: all), or `within_s` after the first contribution; every member gets
    the same sum, whether it came in time or not. Sums are fixed-point, see `learning.fixed`: `fraction_bits` is their
    resolution.
    """

    tag: str
    value: Params
    group: frozenset[NodeId]
    weight: float = 1.0
    quorum: int | None = None
    within_s: float | None = None
    fraction_bits: int = FRACTION_BITS


@dataclass(frozen=True, slots=True, eq=False)
class Compute:
    """Ask the Trainer for the gradient of the loss on `batch` at the parameters `at`."""

    verb: Literal["gradient"]
    at: Params
    batch: Arrays


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
        return Params(self.layout, self.total.mean().astype(np.float32))

    @property
    def integers(self) -> Integers:
        """The exact sum in units of 2^-fraction_bits: int64[num_values]."""
        return self.total.integers


@dataclass(frozen=True, slots=True, eq=False)
class Gradient:
    """Answer to Compute("gradient"): mean gradient and mean loss over `num_samples` samples."""

    values: Params
    loss: float
    num_samples: int


def exchange(
    tag: str,
    out: Mapping[NodeId, Message],
    expect: Iterable[NodeId],
    *,
    quorum: int | None = None,
    within_s: float | None = None,
) -> Effects[Inbox]:
    """`got = yield from exchange("x", {j: {"x": x}}, expect=peers)`."""
    got: Inbox = yield Exchange(tag, out, frozenset(expect), quorum, within_s)
    return got


def reduce(
    tag: str,
    value: Params,
    group: Iterable[NodeId],
    *,
    weight: float = 1.0,
    quorum: int | None = None,
    within_s: float | None = None,
    fraction_bits: int = FRACTION_BITS,
) -> Effects[Reduced]:
    """`total = yield from reduce("g", g, group=t.nodes)`."""
    got: Reduced = yield Reduce(tag, value, frozenset(group), weight, quorum, within_s, fraction_bits)
    return got


def gradient(at: Params, batch: Arrays) -> Effects[Gradient]:
    """`g = yield from gradient(x, t.batch)`."""
    got: Gradient = yield Compute("gradient", at, batch)
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
