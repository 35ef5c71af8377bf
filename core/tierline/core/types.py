"""The values every room speaks about: identities, tensor specifications, coded tensors, answers.

Shape legend used in this project: B batch, N views (or parts of one sample), K classes, C channels, H height, W width.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NewType

import numpy as np
import numpy.typing as npt

from tierline.core.errors import ShapeMismatch

NodeId = NewType("NodeId", str)
"""Name of one process in the hierarchy, unique in its fleet."""

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
"""Named arrays; axis 0 is always the batch."""


FLOAT32, FLOAT16, INT8, FLOAT8_E4M3 = "float32", "float16", "int8", "float8_e4m3"
PRECISIONS = (FLOAT32, FLOAT16, INT8, FLOAT8_E4M3)
"""What a Section may be computed in, by dtype of the arithmetic."""


class Tier(str, enum.Enum):
    """A level of the hierarchy, from the sensor upwards."""

    DEVICE = "device"
    EDGE = "edge"
    CLOUD = "cloud"


class SampleId(NamedTuple):
    """Identity of one sample, minted once: `origin` counts `seq` within its `epoch` (one epoch per process start).

    A tuple, because every sample is looked up several times at every hop, and tuples hash in C.
    """

    origin: NodeId
    epoch: int
    seq: int

    def __str__(self) -> str:
        return f"{self.origin}/{self.epoch}/{self.seq}"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """dtype name and shape *without* the batch axis, e.g. `TensorSpec("float32", (4, 8, 8))`."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_values(self) -> int:
        """Values in one row of the batch."""
        return int(np.prod(self.shape, dtype=np.int64))

    def nbytes(self, num_rows: int = 1) -> int:
        """Bytes of `num_rows` rows, uncoded."""
        return num_rows * self.num_values * np.dtype(self.dtype).itemsize

    def check(self, x_B: Array, what: str) -> None:
        """Raise ShapeMismatch unless `x_B` is a batch of this spec; `what` names the tensor in the message."""
        if x_B.dtype != np.dtype(self.dtype) or x_B.shape[1:] != self.shape or x_B.ndim == 0:
            raise ShapeMismatch(
                f"{what}: expected a batch of {self.dtype}{list(self.shape)}, got {x_B.dtype}{list(x_B.shape)}"
            )


@dataclass(slots=True)
class Payload:
    """A coded tensor: what `Codec.encode` returns. `shape` includes the batch axis; `data` is what crosses the link.

    Not to be changed once made; not frozen, since freezing costs every message a microsecond per field.
    """

    codec: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes
    params: Mapping[str, float] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        return len(self.data)


@dataclass(frozen=True, slots=True)
class Box:
    """One object in an image. `corners` are left, top, right, bottom as shares of the image's width and height."""

    index: int
    label: str
    confidence: float
    corners: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Answer:
    """A decoded result. For classification `label` is the class name, `confidence` its softmax probability."""

    index: int
    label: str
    confidence: float
    boxes: tuple[Box, ...] | None = None
    """Detection: every object, the most confident first, which `index`, `label` and `confidence` speak of."""
    values: tuple[float, ...] | None = None
    """Regression: the numbers; `label` is their text."""


NO_ANSWER = Answer(-1, "", 0.0)
"""Of a sample that ended, degraded, before any exit saw it."""

Truth = int | str | tuple[Box, ...] | tuple[float, ...]
"""What is known of a sample: a class's index or label, its objects, or its numbers."""
