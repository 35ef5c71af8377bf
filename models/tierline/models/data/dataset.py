"""What every data reader returns, and how a data set becomes the views of a hierarchy.

Shapes: S samples, N views, H W C of one image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tierline.core.errors import DataError
from tierline.core.types import Array

Report = Callable[[str, float], None]
"""Progress of reading or downloading: what, and the share done in [0, 1]."""


@dataclass(frozen=True)
class Split:
    """Images and their labels."""

    images: Array
    """uint8 (S, H, W) or (S, H, W, C), or (S, N, H, W, C) where each view has its own."""
    labels: Array
    """int64 (S,)."""
    view_labels: Array | None = None
    """Only with own images per view: int64 (S, N), label of each view, -1 where it is absent."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Array) -> Split:
        """Some of the samples."""
        view_labels = None if self.view_labels is None else self.view_labels[rows]
        return Split(self.images[rows], self.labels[rows], view_labels)


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits: one trains, one calibrates, one is only ever measured."""

    name: str
    labels: list[str]
    train: Split
    validation: Split
    test: Split

    @property
    def num_views(self) -> int | None:
        """Number of views where each has its own image, None where one image is cut into patches."""
        return self.train.images.shape[1] if self.train.images.ndim == 5 else None


def hold_out(split: Split, share: float, seed: int, where: str) -> tuple[Split, Split]:
    """Shuffle by `seed` and split off the last `share`. Raises DataError where a part would be empty."""
    order = np.random.default_rng(seed).permutation(len(split))
    num_held = round(share * len(split))
    if num_held < 1 or num_held >= len(split):
        raise DataError(f"{where}: {len(split)} samples are too few to hold out {share:.0%} of them; add samples")
    return split.take(order[:-num_held]), split.take(order[-num_held:])
