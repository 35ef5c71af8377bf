"""The contracts between rooms: small, typed, without base classes. Algorithms behind them do no I/O, unless async.

Shape legend: B batch, N parts (views) of one sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from tierline.core.telemetry.ledger import Ledger
from tierline.core.types import Answer, Array, Arrays, Payload, SampleId, TensorSpec, Truth


class Clock(Protocol):
    """Monotonic time of one node; injected so that tests can turn it."""

    def now_ns(self) -> int: ...


class Codec(Protocol):
    """Tensor to bytes and back; stateless and thread-safe. Rows are coded independently: batch equals single."""

    dtypes: ClassVar[tuple[str, ...]]
    """dtype names it takes."""
    role: ClassVar[str]
    """`values`, `select` or `bytes`: how it composes, see `core.coding`."""

    @property
    def token(self) -> str:
        """What a Payload and a Plan call it: name, options and wrapped codecs, e.g. `sparse_bitmap+affine:4`."""
        ...

    def encode(self, x_B: Array, *, seed: int = 0) -> Payload:
        """Code a batch; `seed` (below 2^53) starts the randomness of codecs that have some.

        Raises ShapeMismatch for a dtype this codec does not take, CodecError for values it has no place for.
        """
        ...

    def decode(self, payload: Payload, limit: TensorSpec, *, max_rows: int = 4096, out: Array | None = None) -> Array:
        """Decode at most `max_rows` rows of `limit`'s dtype and shape, into `out` if given.

        `out` is C-contiguous, aligned, writable and of exactly that shape.

        Everything is checked before anything is allocated. Raises CorruptPayload; `out` then holds anything.
        """
        ...

    def max_error(self, x_B: Array) -> float:
        """Largest absolute error that coding `x_B` can cause; 0.0 means lossless."""
        ...

    def size_bounds(self, spec: TensorSpec, num_rows: int = 1) -> tuple[int, int]:
        """Smallest and largest `Payload.num_bytes` for `num_rows` rows of `spec`: a planner asks before paying."""
        ...


@dataclass(frozen=True, slots=True)
class SectionSpec:
    """Names and specs of a Section's inputs and outputs."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


class Engine(Protocol):
    """Runs one Section; one caller at a time."""

    spec: SectionSpec

    def warmup(self) -> None:
        """Run once on zeros, so that the first sample pays nothing extra."""
        ...

    def run(self, inputs: Arrays) -> Arrays:
        """Run a batch of any size. Raises EngineError."""
        ...

    def close(self) -> None: ...


class ExitRule(Protocol):
    """Scores outputs in [0, 1]; 0 is certain. A sample leaves iff T >= 1 or score < T; T lives in the Plan."""

    def score(self, outputs: Arrays) -> Array:
        """Score each row: float32[B]. Reads the output named `logits`."""
        ...


class Task(Protocol):
    """What outputs mean."""

    measure: ClassVar[str]
    """What `quality` is called."""

    def decode(self, outputs: Arrays) -> list[Answer]:
        """One Answer per row."""
        ...

    def quality(self, answers: Sequence[Answer], truths: Sequence[Truth]) -> float:
        """Quality against truth in [0, 1] (accuracy for classification)."""
        ...

    def agreement(self, a: Answer, b: Answer) -> float:
        """How far two answers say the same, in [0, 1]."""
        ...


class Aggregator(Protocol):
    """Fusion of several parts of one sample."""

    def combine(self, parts_NB: Array, present_NB: Array) -> Array:
        """Fuse `parts_NB` (N, B, ...) under the mask `present_NB` (N, B) bool; absent parts must not count.

        A sample with no part at all yields zeros. max_pool and avg_pool keep the shape (B, ...);
        concat joins along the first axis after the batch, zeros standing in for absent parts.
        """
        ...

    def fused_spec(self, part: TensorSpec, num_parts: int) -> TensorSpec:
        """Spec of what `combine` returns."""
        ...


@dataclass(frozen=True, slots=True)
class Capture:
    """One raw input. `image` is HWC uint8 (or HW), or already-preprocessed float32 CHW as the source states."""

    image: Array
    seq: int | None
    """Intrinsic index where the source has one, else None."""
    truth: Truth | None = None
    capture_ns: int = 0
    """How long reading the sensor took."""


class Source(Protocol):
    """Where one view comes from. Its constructor starts nothing."""

    async def check(self) -> None:
        """Raise what `open` would raise for a missing file or program, and start nothing."""
        ...

    async def open(self) -> None: ...

    async def capture(self) -> Capture | None:
        """The next input, or None at the end."""
        ...

    async def close(self) -> None: ...

    @property
    def num_dropped(self) -> int:
        """Frames replaced by newer ones before anyone took them."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a view's origin learns: exactly one per captured view."""

    id: SampleId
    view: str
    answer: Answer
    exit: str
    """Name of the exit that answered."""
    degraded: bool
    reason: str
    """Why degraded (`no_parent`, `deadline`, `refused: ...`), else empty."""
    num_views: int
    """How many views took part."""
    plan: int
    ledger: Ledger
    truth: Truth | None = None
    run: str = ""
    """Identity of the run of the hierarchy, given by its root."""


class Sink(Protocol):
    """Where outcomes go. Its constructor raises for what cannot work, and writes and starts nothing."""

    async def put(self, outcome: Outcome) -> None: ...

    async def close(self) -> None: ...
