"""Fusion by the elementwise mean of the parts present: DDNN's AP.

Teerapittayanon, McDanel, Kung, "Distributed Deep Neural Networks over the Cloud, the Edge and End Devices",
ICDCS 2017, section III-B. Deviation: the sum is divided by the number of parts present, so an absent part does not
pull the mean towards zero. Status: checked.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from tierline.core.aggregate._mask import all_present, spread
from tierline.core.types import Array, TensorSpec


class AvgPool:
    """Aggregator `avg_pool`."""

    symmetric: ClassVar[bool] = True
    """The order of the parts does not matter, up to rounding."""

    def combine(self, parts_NB: Array, present_NB: Array) -> Array:
        if all_present(parts_NB, present_NB, "avg_pool"):
            fused_B: Array = np.add.reduce(parts_NB, axis=0)
            fused_B /= len(parts_NB)
            return fused_B
        mask_NB = spread(present_NB, parts_NB)
        fused_B = np.add.reduce(parts_NB, axis=0, where=mask_NB)
        fused_B /= np.maximum(mask_NB.sum(axis=0), 1).astype(fused_B.dtype)
        return fused_B

    def fused_spec(self, part: TensorSpec, num_parts: int) -> TensorSpec:
        return part
