"""Score of a regression that knows its variance: `s / (1 + s)`, s the mean standard deviation of its values.

Reads `logits` (B, 2 D): D values and the natural logarithms of their variances, as
Nix, Weigend, "Estimating the mean and variance of the target probability distribution", ICNN 1994, train them.
The scale of s is that of the values; thresholds follow from calibration. Logits with NaN or +inf score 1.0.
Status: reconstructed.
"""

from __future__ import annotations

import numpy as np

from tierline.core.decide import bounded, logits_of
from tierline.core.errors import ShapeMismatch
from tierline.core.types import Array, Arrays


class Spread:
    """Exit rule `spread`."""

    def score(self, outputs: Arrays) -> Array:
        logits_B = logits_of(outputs)
        num, odd = divmod(logits_B.shape[1], 2)
        if odd:
            raise ShapeMismatch(f"logits: {logits_B.shape[1]} columns; spread reads values and as many log variances")
        with np.errstate(over="ignore", invalid="ignore"):
            spread_B = np.exp(logits_B[:, num:] / 2).mean(axis=1)
            score_B = np.where(np.isfinite(spread_B), spread_B / (1 + spread_B), np.float32(1))
        broken_B = np.isnan(logits_B).any(axis=1) | np.isposinf(logits_B).any(axis=1)
        return bounded(np.where(broken_B, np.float32(1), score_B).astype(np.float32))
