"""How a data set becomes the views of a hierarchy: the grid of patches, the preprocessing, the arrays to train on.

Shapes: N views, S samples, C H W of one view.
"""

from __future__ import annotations

import numpy as np

from tierline.core.bundle import Preprocess
from tierline.core.errors import ConfigError, DataError
from tierline.core.preprocess import Preprocessor
from tierline.models.data.dataset import Dataset, Split
from tierline.models.train.ddnn import Views

MIN_PATCH = 8
"""Smallest side of a patch in pixels: below it, a 3x3 convolution with pooling leaves too little to see."""


def grid_for(num_views: int) -> tuple[int, int]:
    """Rows and columns of the most square grid with that many patches: 6 -> 2x3, 4 -> 2x2, 2 -> 1x2, 1 -> 1x1."""
    if num_views < 1:
        raise ConfigError(f"devices = {num_views} must be at least 1")
    rows = max(r for r in range(1, int(num_views**0.5) + 1) if num_views % r == 0)
    return rows, num_views // rows


def patch_side(length: int, parts: int) -> int:
    """Side of one patch: `length / parts` rounded up to an even number, at least MIN_PATCH.

    Images are resized to patch times grid, so the grid always divides them and a halving pool loses no pixel.
    """
    share = -(-length // parts)
    return max(MIN_PATCH, share + share % 2)


def preprocess_for(data: Dataset, num_views: int) -> Preprocess:
    """Preprocessing for a data set: its grid, and mean and standard deviation of the training split's pixels."""
    images = data.train.images
    if data.num_views is not None:
        if num_views != data.num_views:
            raise ConfigError(f"data {data.name!r} has {data.num_views} views of its own; devices = {num_views}")
        present = images if data.train.view_labels is None else images[data.train.view_labels >= 0]
        pixels, grid, size = present, (1, 1), (images.shape[2], images.shape[3])
    else:
        pixels, grid = images, grid_for(num_views)
        size = (patch_side(images.shape[1], grid[0]) * grid[0], patch_side(images.shape[2], grid[1]) * grid[1])
    channels = 1 if pixels.ndim == 3 else pixels.shape[-1]
    if channels not in (1, 3):
        raise DataError(f"data {data.name!r}: images of {channels} channels; expected 1 (grey) or 3 (RGB)")
    flat = pixels.reshape(-1, channels)
    # Four decimals are plenty and keep the manifest readable.
    mean = tuple(round(float(m) / 255.0, 4) for m in flat.mean(0))
    std = tuple(max(round(float(s) / 255.0, 4), 0.01) for s in flat.std(0))
    return Preprocess(size=size, channels=3 if channels == 3 else 1, mean=mean, std=std, grid=grid)


def prepare(split: Split, preprocess: Preprocess) -> Views:
    """Preprocess a split with the code that agents run."""
    preprocessor = Preprocessor(preprocess)
    if split.images.ndim == 5:
        num_views = split.images.shape[1]
        images = np.stack([preprocessor.many(split.images[:, i], i) for i in range(num_views)])
    else:
        images = preprocessor.views(split.images)
        num_views = len(images)
    if split.view_labels is None:
        return Views(images, split.labels, np.tile(split.labels, (num_views, 1)))
    return Views(images, split.labels, np.ascontiguousarray(split.view_labels.T))
