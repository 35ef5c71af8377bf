"""Finds a data set: a name, a folder of images, or a zip of one."""

from __future__ import annotations

import importlib
from pathlib import Path

from tierline.core.catalog import nearest
from tierline.core.errors import DataError
from tierline.models.data import folder
from tierline.models.data.dataset import Dataset, Report

NAMES = ("cifar10", "digits", "fashion_mnist", "mnist", "mvmc")
"""One file of this folder each, with a function `read(seed, report)`."""


def load(name_or_path: str | Path, seed: int = 0, report: Report | None = None) -> Dataset:
    """Load by name, else by path. `seed` draws the validation split, never the test split of a set that has one.

    Raises DataError with what is missing and where to put it.
    """
    name = str(name_or_path)
    if name in NAMES:
        dataset: Dataset = importlib.import_module(f"tierline.models.data.{name}").read(seed, report)
        return dataset
    path = Path(name_or_path)
    if not path.exists():
        raise DataError(f"data {name!r}: neither a data set nor an existing path{nearest(name, NAMES)}")
    return folder.read_path(path, seed, report)
