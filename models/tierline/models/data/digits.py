"""Handwritten digits of scikit-learn: 1,797 grey images of 8x8, offline. Every fifth sample of a fixed order tests."""

from __future__ import annotations

import numpy as np

from tierline.core.errors import MissingDependency
from tierline.models.data.dataset import Dataset, Report, Split, hold_out

_TEST_SEED = 20170605
"""The test split is the same for every seed, so that seeds can be compared."""


def read(seed: int, report: Report | None = None) -> Dataset:
    """Read the digits; `seed` draws the validation split."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise MissingDependency('data "digits" needs scikit-learn: pip install "tierline[train]"') from error
    raw = load_digits()
    # Grey values run from 0 to 16.
    images = np.round(raw.images * (255.0 / 16.0)).astype(np.uint8)
    everything = Split(images, raw.target.astype(np.int64))
    rest, test = hold_out(everything, 0.2, _TEST_SEED, "digits")
    train, validation = hold_out(rest, 0.15, seed, "digits")
    return Dataset("digits", [str(i) for i in range(10)], train, validation, test)
