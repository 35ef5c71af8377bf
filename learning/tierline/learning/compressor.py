"""The contract of the room `compress`: an update becomes something smaller on its way, and an array again.

A compressor works on one tensor at a time and hands its arrays to codecs (`core.coding`), so that what a message costs
is counted in bytes. All its randomness comes from the key it is given: the sender's, which the receiver knows too.

Shape legend: B samples of a batch, I inputs and O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tierline.core.errors import ShapeMismatch
from tierline.core.rng import Key
from tierline.core.types import Array, Payload
from tierline.learning.rule import State

Floats = npt.NDArray[np.float32]

STAMP_BYTES, SCALAR_BYTES = 4, 8


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """A dense layer's gradient before it is multiplied out: G = X' D, summed over the batch.

    `x_BI` is what the layer was given, `d_BO` the error at its outputs, float32. Raises ShapeMismatch.
    """

    x_BI: Floats
    d_BO: Floats

    def __post_init__(self) -> None:
        x, d = self.x_BI, self.d_BO
        if x.ndim != 2 or d.ndim != 2 or len(x) != len(d) or x.dtype != np.float32 or d.dtype != np.float32:
            raise ShapeMismatch(
                f"Factors: needs float32[B, I] and float32[B, O], got {x.dtype}{list(x.shape)} and "
                f"{d.dtype}{list(d.shape)}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Of the gradient: (I, O)."""
        return self.x_BI.shape[1], self.d_BO.shape[1]

    def product(self) -> Floats:
        """The gradient: float32[I, O]."""
        gradient: Floats = self.x_BI.T @ self.d_BO
        return gradient


@dataclass(frozen=True, slots=True, eq=False)
class Compressed:
    """What stands for one array on its way: coded arrays and a few numbers."""

    shape: tuple[int, ...]
    """Of the array. Both ends know it: it is not part of the message, see `learning.packing`."""
    stamp: int
    """Says under which key it was made, in 32 bits: a receiver with another key refuses it."""
    payloads: Mapping[str, Payload] = field(default_factory=dict)
    scalars: Mapping[str, float] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Stamp, numbers and coded arrays; what frames add is not in it."""
        coded = sum(payload.num_bytes for payload in self.payloads.values())
        return STAMP_BYTES + SCALAR_BYTES * len(self.scalars) + coded


@dataclass(frozen=True, slots=True)
class Promise:
    """What holds for one message, with nothing remembered from earlier ones. C(x) is what the receiver makes of x."""

    unbiased: bool = False
    """E C(x) = x over keys."""
    contracts: bool = False
    """E |C(x) - x|^2 < |x|^2 for every x but 0, so that error feedback converges."""
    takes_factors_only: bool = False
    needs_side: bool = False
    """`expand` needs side information: the receiver's own estimate of the update."""
    remembers: bool = False
    """What is sent depends on earlier updates; `state` is not empty."""


class Compressor(Protocol):
    """An update, gradient or pair of factors to something smaller; one instance per node.

    What it remembers is kept per (receiver, tensor) of the key. Compressors of arrays multiply Factors out.
    """

    promise: Promise

    def compress(self, key: Key, update: Array | Factors) -> Compressed:
        """Raises ShapeMismatch for what is no float32 array, CodecError naming the tensor for NaN, infinities and
        magnitudes above 2^100."""
        ...

    def expand(self, key: Key, message: Compressed, side: Array | None = None) -> Floats:
        """An array of the update's shape. `key` is the sender's. Remembers nothing.

        Raises BadFrame for a message made under another key or by another compressor, CorruptPayload for bytes that no
        encoder made or that stand for NaN or infinities, RuleError without the side information it needs.
        """
        ...

    def expected_error(self, update: Array | Factors) -> float:
        """Bound on E |C(update) - update|^2 over keys, with nothing remembered; infinite where none is known."""
        ...

    def max_bytes(self, update: Array | Factors) -> int:
        """Bound on `Compressed.num_bytes`: a planner asks before paying."""
        ...

    def state(self) -> State: ...

    def load(self, state: State) -> None: ...
