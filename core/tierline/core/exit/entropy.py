"""Score by normalised entropy: `-sum_k p_k ln p_k / ln K`, p = softmax(logits).

Teerapittayanon, McDanel, Kung, "Distributed Deep Neural Networks over the Cloud, the Edge and End Devices",
ICDCS 2017, section III-D. With z = logits - max and S = sum_k exp(z_k) it equals
`(ln S - sum_k z_k exp(z_k) / S) / ln K`. One class has no uncertainty: 0.
Logits with NaN or +inf score 1.0, so such a sample leaves at T >= 1 only.
Deviation: clipped to [0, 1], because in float32 uniform logits come out a little above 1. Status: checked.
"""

from __future__ import annotations

import math

import numpy as np

from tierline.core.decide import bounded, logits_of, relative
from tierline.core.types import Array, Arrays


class Entropy:
    """Exit rule `entropy`."""

    def score(self, outputs: Arrays) -> Array:
        z_BK = relative(logits_of(outputs))
        exp_BK = np.exp(z_BK)
        sum_B = np.add.reduce(exp_BK, axis=1)
        entropy_B = np.log(sum_B) - np.add.reduce(z_BK * exp_BK, axis=1) / sum_B
        num_classes = z_BK.shape[1]
        return bounded(entropy_B / np.float32(math.log(num_classes) if num_classes > 1 else 1))
