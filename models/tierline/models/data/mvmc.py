"""MVMC: DDNN's six synchronised cameras, 851 objects, classes car, bus, person; 32x32 RGB crops.

Read from `mvmc.npz` (or `MVMC.npz`) in TIERLINE_DATA_DIR: `X` float32 (851, 6, 3, 32, 32) in [0, 1], `y` int (851, 6),
3 where a camera does not see the object. The sample's label is that of the cameras that see it. The authors fix a
680/171 split by a permutation of their own; here it is drawn from a fixed seed, so single figures differ a little.
"""

from __future__ import annotations

import numpy as np

from tierline.core.errors import DataError
from tierline.models.data.dataset import Dataset, Report, Split, hold_out
from tierline.models.data.download import find_local
from tierline.models.data.idx import read_npz

_LABELS = ["car", "bus", "person"]
_ABSENT = 3
_TEST_SEED = 20170605
_TEST_SHARE = 171 / 851


def read(seed: int, report: Report | None = None) -> Dataset:
    """Read MVMC; `seed` draws the validation split of 15 % from the training samples. Raises DataError."""
    path = find_local("mvmc.npz", "MVMC.npz")
    if path is None:
        raise DataError("data 'mvmc': put mvmc.npz into TIERLINE_DATA_DIR; it has no public address any more")
    arrays = read_npz(path, ("X", "y"))
    x, y = arrays["X"], arrays["y"]
    if x.dtype.kind != "f" or x.ndim != 5 or x.shape[2] != 3 or y.shape != x.shape[:2] or y.dtype.kind not in "iu":
        raise DataError(
            f"{path}: expected X float (S, N, 3, H, W) and y int (S, N), "
            f"got {x.dtype}{list(x.shape)} and {y.dtype}{list(y.shape)}"
        )
    if y.min() < 0 or y.max() > _ABSENT or not np.isfinite(x).all() or x.min() < 0.0 or x.max() > 1.0:
        raise DataError(f"{path}: labels must lie in 0 to {_ABSENT} and pixels in [0, 1]")
    view_labels = np.where(y == _ABSENT, -1, y).astype(np.int64)
    seen = (view_labels >= 0).any(1)
    images = np.round(x.transpose(0, 1, 3, 4, 2) * 255.0).astype(np.uint8)
    everything = Split(images, view_labels.max(1), view_labels).take(np.flatnonzero(seen))
    rest, test = hold_out(everything, _TEST_SHARE, _TEST_SEED, str(path))
    train, validation = hold_out(rest, 0.15, seed, str(path))
    return Dataset("mvmc", _LABELS, train, validation, test)
