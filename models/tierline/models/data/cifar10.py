"""CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 photographs, 32x32 RGB.

Read from TIERLINE_DATA_DIR: `cifar10.zip` or the folder `cifar10` (image folders with train and test), or the original
`cifar-10-batches-py` folder or `cifar-10-python.tar.gz`; else downloaded from its original address.
"""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from tierline.core.errors import DataError
from tierline.models.data import folder
from tierline.models.data.dataset import Dataset, Report, Split, hold_out
from tierline.models.data.download import Remote, fetch, find_local

_LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
_REMOTE = Remote(("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",), "md5:c58f30108f718f92721af3b95e74349a")
_FOLDER = "cifar-10-batches-py"
_TRAIN = [f"data_batch_{i}" for i in range(1, 6)]


def read(seed: int, report: Report | None = None) -> Dataset:
    """Read CIFAR-10; `seed` draws the validation split of 10 % from the training images. Raises DataError."""
    images = find_local("cifar10.zip", "cifar10")
    if images is not None:
        return folder.read_path(images, seed, report, "cifar10")
    local = find_local(_FOLDER)
    if local is not None:
        batches = {name: _read_file(local / name) for name in [*_TRAIN, "test_batch"]}
    else:
        batches = _read_archive(fetch(_REMOTE, "cifar10", "cifar10.zip or cifar-10-python.tar.gz", report))
    train, validation = hold_out(_split(batches, _TRAIN), 0.1, seed, "cifar10")
    return Dataset("cifar10", _LABELS, train, validation, _split(batches, ["test_batch"]))


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _read_archive(path: Path) -> dict[str, bytes]:
    wanted = {*_TRAIN, "test_batch"}
    batches = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member) if Path(member.name).name in wanted else None
                if file is not None:
                    batches[Path(member.name).name] = file.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{path}: not the CIFAR-10 archive ({error})") from error
    missing = sorted(wanted - batches.keys())
    if missing:
        raise DataError(f"{path}: holds no {missing[0]}; expected the original CIFAR-10 archive")
    return batches


def _split(batches: dict[str, bytes], names: list[str]) -> Split:
    images, labels = [], []
    for name in names:
        try:
            batch = _PlainUnpickler(io.BytesIO(batches[name]), encoding="bytes").load()
            images.append(np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels.append(np.asarray(batch[b"labels"], np.int64))
        except (pickle.UnpicklingError, KeyError, ValueError, TypeError, EOFError, IndexError) as error:
            raise DataError(f"cifar10: {name} is no CIFAR-10 batch ({error})") from error
    return Split(np.ascontiguousarray(np.concatenate(images)), np.concatenate(labels))


class _PlainUnpickler(pickle.Unpickler):
    """The original batches are pickles; this reads arrays and plain values only, so that no file can run code."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) in {("numpy", "dtype"), ("numpy", "ndarray")}:
            return getattr(np, global_name)
        if module_name in ("numpy.core.multiarray", "numpy._core.multiarray") and global_name == "_reconstruct":
            return np.zeros(0).__reduce__()[0]
        if (module_name, global_name) == ("_codecs", "encode"):
            return _latin1
        raise pickle.UnpicklingError(f"{module_name}.{global_name} is not allowed here")


def _latin1(text: str, encoding: str) -> bytes:
    """What old pickles of bytes call."""
    return text.encode("latin1" if encoding != "latin1" else encoding)
