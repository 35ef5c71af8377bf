"""Score by the gap between the two best classes: `1 - (p_(1) - p_(2))`, p = softmax(logits) in descending order.

Scheffer, Decomain, Wrobel, "Active Hidden Markov Models for Information Extraction", IDA 2001.
One class has no rival: 0. Logits with NaN or +inf score 1.0, so such a sample leaves at T >= 1 only.
Deviation: turned round, so that 0 is certain. Status: checked.
"""

from __future__ import annotations

import numpy as np

from tierline.core.decide import bounded, logits_of, relative
from tierline.core.types import Array, Arrays


class Margin:
    """Exit rule `margin`."""

    def score(self, outputs: Arrays) -> Array:
        exp_BK = np.exp(relative(logits_of(outputs)))
        sum_B = np.add.reduce(exp_BK, axis=1)
        num_classes = exp_BK.shape[1]
        if num_classes == 1:
            return bounded(sum_B - np.float32(1))
        second_B = np.partition(exp_BK, num_classes - 2, axis=1)[:, -2]
        return bounded(np.float32(1) - (np.float32(1) - second_B) / sum_B)
