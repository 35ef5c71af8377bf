"""Readers shared by MNIST and Fashion-MNIST: an `.npz` of four arrays, or four gzipped idx files."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tierline.core.errors import DataError
from tierline.core.types import Array
from tierline.models.data.dataset import Dataset, Report, Split, hold_out
from tierline.models.data.download import Remote, fetch, find_local

KEYS = ("x_train", "y_train", "x_test", "y_test")
_VALIDATION_SHARE = 0.1


def read_npz_or_idx(
    name: str, remotes: Mapping[str, Remote], labels: list[str], seed: int, report: Report | None
) -> Dataset:
    """`NAME.npz` of TIERLINE_DATA_DIR first, else the four remote files. Raises DataError."""
    local = find_local(f"{name}.npz")
    if local is not None:
        where, arrays = str(local), read_npz(local, KEYS)
    else:
        where = name
        arrays = {key: read_idx(fetch(remote, name, f"{name}.npz", report)) for key, remote in remotes.items()}
    splits = {}
    for part in ("train", "test"):
        images, truths = arrays[f"x_{part}"], arrays[f"y_{part}"]
        check_images(images, truths, len(labels), f"{where}: {part}")
        splits[part] = Split(images, truths.astype(np.int64))
    train, validation = hold_out(splits["train"], _VALIDATION_SHARE, seed, where)
    return Dataset(name, labels, train, validation, splits["test"])


def check_images(images: Array, labels: Array, num_classes: int, where: str) -> None:
    """Raise DataError unless these are uint8 images with one label each, in range."""
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or len(images) == 0:
        raise DataError(f"{where}: expected uint8 images (S, H, W[, C]), got {images.dtype}{list(images.shape)}")
    if labels.ndim != 1 or len(labels) != len(images) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{where}: {len(images)} images need as many integer labels, got {labels.dtype}{list(labels.shape)}"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise DataError(f"{where}: labels must lie in 0 to {num_classes - 1}, found {labels.min()} to {labels.max()}")


def read_npz(path: Path, keys: tuple[str, ...]) -> dict[str, Array]:
    """Arrays of a NumPy archive, without pickle. Raises DataError naming the file, what it lacks, and what it needs."""
    wanted = f"expected an .npz of plain arrays {', '.join(keys)}"
    try:
        with path.open("rb") as file:
            is_zip = zipfile.is_zipfile(file)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {wanted}") from error
    refused = f"{path}: not a data set archive; {wanted}: replace or remove the file"
    if not is_zip:
        raise DataError(refused)
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [key for key in keys if key not in archive.files]
            if missing:
                raise DataError(f"{path}: no array {missing[0]!r}; {wanted}")
            arrays = {key: archive[key] for key in keys}
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(refused) from error  # NumPy's own words recommend to load pickles
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise DataError(refused)  # a member that is no array comes as its bytes
    return arrays


def read_idx(path: Path) -> Array:
    """One gzipped idx file of bytes: magic 0x0000 08 rank, big-endian lengths, values. Raises DataError."""
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a gzip file ({error})") from error
    rank = raw[3] if len(raw) >= 4 else 0
    if raw[:3] != b"\x00\x00\x08" or rank == 0 or len(raw) < 4 + 4 * rank:
        raise DataError(f"{path}: not an idx file of unsigned bytes")
    shape = tuple(int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank))
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * rank)
    if values.size != int(np.prod(shape)):
        raise DataError(f"{path}: {values.size} values do not fill the stated shape {list(shape)}")
    return values.reshape(shape)
