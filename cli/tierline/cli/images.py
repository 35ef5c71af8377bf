"""Files that a tuning reads beside the Profile: samples with their truths, and answers."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from tierline.core.errors import DataError
from tierline.core.types import Array

_OTHER_FILE = (ValueError, EOFError, zipfile.BadZipFile, TypeError, AttributeError)
"""What NumPy raises for one, the last two for an array alone."""


def _arrays(path: Path, *names: str) -> list[Array]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return [file[name] for name in names]
    except KeyError as error:
        raise DataError(f"{path}: needs the array {' and '.join(names)} ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except _OTHER_FILE:
        raise DataError(f"{path}: is no .npz file") from None


def images_of(path: Path) -> tuple[Array, Array]:
    """`images` (uint8) and `labels` of an .npz file. Raises DataError."""
    images, labels = _arrays(path, "images", "labels")
    if images.dtype != np.uint8 or len(images) != len(labels) or not len(images):
        raise DataError(f"{path}: {images.dtype}{list(images.shape)} images and {len(labels)} labels do not fit")
    return images, labels.astype(np.int64)


def only_images_of(path: Path) -> Array:
    """`images` (uint8) of an .npz file. Raises DataError."""
    (images,) = _arrays(path, "images")
    if images.dtype != np.uint8 or images.ndim < 3 or not len(images):
        raise DataError(f"{path}: images are {images.dtype}{list(images.shape)}; expected uint8, one image a row")
    return images


def records_of(path: Path) -> list[dict[str, Any]]:
    """Answers that a sink `jsonl:` wrote, those with a ledger. Raises DataError."""
    try:
        lines = path.read_text("utf-8").splitlines()
        records = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no answers ({error})") from None
    found = [record for record in records if isinstance(record, dict) and record.get("hops")]
    if not found:
        raise DataError(f"{path}: none of {len(records)} lines is an answer with a ledger")
    return found
