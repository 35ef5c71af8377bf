"""Fusion by the elementwise maximum of the parts present: DDNN's MP.

Teerapittayanon, McDanel, Kung, "Distributed Deep Neural Networks over the Cloud, the Edge and End Devices",
ICDCS 2017, section III-B. Deviation: absent parts are masked instead of fed as zeros. Status: checked.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from tierline.core.aggregate._mask import all_present, spread
from tierline.core.types import Array, TensorSpec


class MaxPool:
    """Aggregator `max_pool`."""

    symmetric: ClassVar[bool] = True
    """The order of the parts does not matter."""

    def combine(self, parts_NB: Array, present_NB: Array) -> Array:
        if all_present(parts_NB, present_NB, "max_pool"):
            fused_B: Array = np.maximum.reduce(parts_NB, axis=0)
            return fused_B
        fused_B = np.maximum.reduce(parts_NB, axis=0, where=spread(present_NB, parts_NB), initial=-np.inf)
        fused_B[~present_NB.any(axis=0)] = 0
        return fused_B

    def fused_spec(self, part: TensorSpec, num_parts: int) -> TensorSpec:
        return part
