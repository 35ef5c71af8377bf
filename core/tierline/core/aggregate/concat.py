"""Fusion by joining the parts along the first axis after the batch (channels of a feature map): DDNN's CC.

Teerapittayanon, McDanel, Kung, "Distributed Deep Neural Networks over the Cloud, the Edge and End Devices",
ICDCS 2017, section III-B. Zeros stand in for absent parts. Deviations: none. Status: checked.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from tierline.core.aggregate._mask import all_present, spread
from tierline.core.errors import ShapeMismatch
from tierline.core.types import Array, TensorSpec


class Concat:
    """Aggregator `concat`."""

    symmetric: ClassVar[bool] = False
    """The order of the parts is the order of the channels."""

    def combine(self, parts_NB: Array, present_NB: Array) -> Array:
        complete = all_present(parts_NB, present_NB, "concat")
        if parts_NB.ndim < 3:
            raise ShapeMismatch(f"concat: parts {list(parts_NB.shape)} have no axis after the batch to join along")
        if not complete:
            parts_NB = np.where(spread(present_NB, parts_NB), parts_NB, parts_NB.dtype.type(0))
        num_parts, num_rows, num_channels = parts_NB.shape[:3]
        fused_B: Array = parts_NB.swapaxes(0, 1).reshape(num_rows, num_parts * num_channels, *parts_NB.shape[3:])
        return fused_B

    def fused_spec(self, part: TensorSpec, num_parts: int) -> TensorSpec:
        if not part.shape:
            raise ShapeMismatch("concat: a part has no axis after the batch to join along")
        return TensorSpec(part.dtype, (num_parts * part.shape[0], *part.shape[1:]))
