"""A folder of images, or a zip of one: `CLASS/NAME.png`, or `train/CLASS/...` and `test/CLASS/...`.

Folders of one top folder are looked through (`cifar10/train/...`). Classes are the folder names in order. All images
take the size and colour of the first one. Without `train` and `test`, a fifth of the images tests.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np

from tierline.core.errors import DataError, MissingDependency
from tierline.core.types import Array
from tierline.models.data.dataset import Dataset, Report, Split, hold_out

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm"})
_TEST_SEED = 20170605
_MAX_PIXELS = 1 << 24


def read_path(path: Path, seed: int, report: Report | None = None, name: str | None = None) -> Dataset:
    """Read a folder or zip; `seed` draws the validation split of 10 %. Raises DataError."""
    if path.is_dir():
        files = {str(PurePosixPath(*f.relative_to(path).parts)): f for f in sorted(path.rglob("*")) if f.is_file()}
        return _read(name or path.name, str(path), list(files), lambda key: files[key].read_bytes(), seed, report)
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(name or path.stem, str(path), archive.namelist(), archive.read, seed, report)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path}: expected a folder of images or a zip of one ({error})") from error


def _read(
    name: str, where: str, keys: list[str], content: Callable[[str], bytes], seed: int, report: Report | None
) -> Dataset:
    images = [PurePosixPath(key) for key in sorted(keys) if PurePosixPath(key).suffix.lower() in SUFFIXES]
    if not images:
        raise DataError(f"{where}: no images; expected CLASS/NAME.png or train/CLASS/NAME.png")
    # Strip top folders that everything shares, but never the class folder itself.
    if len({p.parts[0] for p in images}) == 1 and all(len(p.parts) > 2 for p in images):
        top = images[0].parts[0]
        inner = [str(PurePosixPath(*p.parts[1:])) for p in images]
        return _read(name, where, inner, lambda key: content(f"{top}/{key}"), seed, report)
    parted = {p.parts[0] for p in images} == {"train", "test"}
    depth = 2 if parted else 1
    shallow = next((p for p in images if len(p.parts) <= depth), None)
    if shallow is not None:
        raise DataError(f"{where}: {shallow} lies in no class folder; expected CLASS/NAME.png or train/CLASS/NAME.png")
    labels = sorted({p.parts[depth - 1] for p in images})
    if len(labels) < 2:
        raise DataError(f"{where}: one class only ({labels[0]}); a classifier needs at least two class folders")
    pixels = _decode_all([str(p) for p in images], content, where, report)
    truths = np.array([labels.index(p.parts[depth - 1]) for p in images], np.int64)
    everything = Split(pixels, truths)
    if parted:
        in_test = np.array([p.parts[0] == "test" for p in images])
        rest, test = everything.take(np.flatnonzero(~in_test)), everything.take(np.flatnonzero(in_test))
    else:
        rest, test = hold_out(everything, 0.2, _TEST_SEED, where)
    train, validation = hold_out(rest, 0.1, seed, where)
    return Dataset(name, labels, train, validation, test)


def _decode_all(keys: list[str], content: Callable[[str], bytes], where: str, report: Report | None) -> Array:
    """uint8 (S, H, W) or (S, H, W, 3), in the size and colour of the first image."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise MissingDependency("reading image files needs Pillow: pip install pillow") from error
    mode, size, out = "", (0, 0), np.empty(0, np.uint8)
    for row, key in enumerate(keys):
        try:
            image: Image.Image = Image.open(io.BytesIO(content(key)))
            if image.size[0] * image.size[1] > _MAX_PIXELS:
                raise DataError(
                    f"{where}: {key} has {image.size[0]}x{image.size[1]} pixels; the limit is {_MAX_PIXELS}"
                )
            if row == 0:
                mode, size = ("L" if image.mode in ("1", "L", "I;16") else "RGB"), image.size
                out = np.empty((len(keys), size[1], size[0], *((3,) if mode == "RGB" else ())), np.uint8)
            image = image if image.mode == mode else image.convert(mode)
            image = image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)
        except (OSError, ValueError, zipfile.BadZipFile, Image.DecompressionBombError) as error:
            raise DataError(f"{where}: {key} is no readable image ({error})") from error
        out[row] = np.asarray(image)
        if report is not None and row % 1000 == 0:
            report("read images", row / len(keys))
    return out
