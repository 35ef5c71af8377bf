"""Score by the missing probability of the best class: `1 - max_k p_k`, p = softmax(logits).

Hendrycks, Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural Networks",
ICLR 2017, section 2 (maximum softmax probability).
Since the best class has exp(0) = 1, it equals `1 - 1 / sum_k exp(logits_k - max)`; at most 1 - 1/K.
Logits with NaN or +inf score 1.0, so such a sample leaves at T >= 1 only.
Deviation: turned round, so that 0 is certain. Status: checked.
"""

from __future__ import annotations

import numpy as np

from tierline.core.decide import bounded, logits_of, relative
from tierline.core.types import Array, Arrays


class MaxSoftmax:
    """Exit rule `max_softmax`."""

    def score(self, outputs: Arrays) -> Array:
        sum_B = np.add.reduce(np.exp(relative(logits_of(outputs))), axis=1)
        return bounded(np.float32(1) - np.float32(1) / sum_B)
