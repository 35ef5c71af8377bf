"""Shuffles all samples and deals them out in equal parts; sizes differ by at most one.

McMahan et al., AISTATS 2017, section 3, "IID".
Status: checked (exact cover, equal sizes).
"""

from __future__ import annotations

import numpy as np

from tierline.core.types import Array


class Iid:
    """No skew."""

    def split(self, labels: Array, num_workers: int, seed: int) -> list[Array]:
        return np.array_split(np.random.default_rng(seed).permutation(len(labels)), num_workers)
