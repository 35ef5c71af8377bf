"""Samples of an `.npz` file: `images` uint8 (S, H, W[, C]), whole images, or `views` uint8 (S, N, H, W[, C]).

Of `views` this view's column is taken. `labels` (S) and `present` (S, N) bool are optional; an absent view is skipped.
"""

from __future__ import annotations

import asyncio
import struct
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np

from tierline.core.clock import MonotonicClock
from tierline.core.errors import ConfigError, DataError
from tierline.core.protocols import Capture, Clock
from tierline.core.source._pace import Pace
from tierline.core.types import Array


class Dataset:
    """Hands out samples `start` .. `start + count` (count 0: to the end) in order, at `rate` Hz (0: as fast as asked).

    `seq` is the sample's index; with `loop` it runs on past the end: n samples from `start` give sample
    start + (seq - start) mod n.
    """

    def __init__(
        self,
        *,
        location: str,
        view: str,
        view_index: int,
        loop: bool = False,
        rate: float = 0.0,
        start: int = 0,
        count: int = 0,
        clock: Clock | None = None,
    ) -> None:
        if not location:
            raise ConfigError("no file; write dataset:PATH.npz")
        if start < 0 or count < 0:
            raise ConfigError(f"start = {start} and count = {count} must not be negative")
        self._path = Path(location)
        self._view = view
        self._view_index = view_index
        self._loop = loop
        self._start = start
        self._count = count
        self._clock = clock or MonotonicClock()
        self._pace = Pace(rate, clock=clock)
        self._k = 0
        self._num_samples = 0
        self._images_S: Array | None = None
        self._labels_S: Array | None = None
        self._present_S: Array | None = None

    @property
    def num_dropped(self) -> int:
        """Always 0: a data set waits."""
        return 0

    async def check(self) -> None:
        """Open and close. Raises DataError."""
        await self.open()
        await self.close()

    async def open(self) -> None:
        """Map or load the file. Raises DataError."""
        await asyncio.to_thread(self._load)

    async def capture(self) -> Capture | None:
        if self._images_S is None:
            return None
        while self._loop or self._k < self._num_samples:
            k = self._k
            self._k += 1
            sample = self._start + k % self._num_samples
            if self._present_S is not None and not self._present_S[sample]:
                continue
            await self._pace.wait(k)
            began_ns = self._clock.now_ns()
            image = np.array(self._images_S[sample])
            truth = None if self._labels_S is None else int(self._labels_S[sample])
            return Capture(image, self._start + k, truth, self._clock.now_ns() - began_ns)
        return None

    async def close(self) -> None:
        self._images_S = self._labels_S = self._present_S = None

    def _load(self) -> None:
        arrays = _read_npz(self._path)
        if "images" in arrays:
            images_S = arrays["images"]
        elif "views" in arrays:
            images_S = self._column(arrays["views"], "views")
        else:
            raise DataError(
                f"{self._path}: neither `images` nor `views` inside; it holds {', '.join(arrays) or 'none'}"
            )
        if images_S.dtype != np.uint8 or images_S.ndim not in (3, 4):
            raise DataError(
                f"{self._path}: images must be uint8 of shape (H, W) or (H, W, C) per sample, "
                f"these are {images_S.dtype}{list(images_S.shape[1:])}"
            )
        for name, num_axes in (("labels", 1), ("present", 2)):
            if name in arrays and (arrays[name].ndim != num_axes or len(arrays[name]) != len(images_S)):
                raise DataError(
                    f"{self._path}: `{name}` {list(arrays[name].shape)} does not fit {len(images_S)} samples"
                )
        end = min(self._start + self._count, len(images_S)) if self._count else len(images_S)
        self._num_samples = end - self._start
        if self._num_samples <= 0:
            raise DataError(f"{self._path}: start = {self._start} is past its {len(images_S)} samples")
        self._labels_S = arrays.get("labels")
        if "present" in arrays:
            self._present_S = self._column(arrays["present"], "present").astype(bool)
            # A view that is always absent has no samples: looping over it would never return.
            self._loop = self._loop and bool(self._present_S[self._start : end].any())
        self._images_S = images_S

    def _column(self, array_SN: Array, name: str) -> Array:
        if array_SN.ndim < 2 or not 0 <= self._view_index < array_SN.shape[1]:
            raise DataError(
                f"{self._path}: `{name}` {list(array_SN.shape)} has no column {self._view_index}, "
                f"which view {self._view!r} should be"
            )
        column: Array = array_SN[:, self._view_index]
        return column


def _read_npz(path: Path) -> dict[str, Array]:
    """Arrays by name: mapped where stored uncompressed, so that many processes share one copy, else loaded."""
    arrays: dict[str, Array] = {}
    try:
        with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as loaded:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                if name not in ("images", "views", "labels", "present"):
                    continue
                stored = info.compress_type == zipfile.ZIP_STORED
                arrays[name] = _map_member(path, info) if stored else loaded[name]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable .npz file: {error}") from error
    return arrays


def _map_member(path: Path, info: zipfile.ZipInfo) -> Array:
    with path.open("rb") as file:
        # The local header's name and extra field may be longer than the central directory says (APPNOTE 4.3.7).
        file.seek(info.header_offset + 26)
        name_bytes, extra_bytes = struct.unpack("<HH", file.read(4))
        file.seek(name_bytes + extra_bytes, 1)
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError(f"{info.filename} holds Python objects")
        order: Literal["F", "C"] = "F" if fortran else "C"
        if 0 in shape:
            return np.empty(shape, dtype)
        mapped: Array = np.memmap(path, dtype, "r", file.tell(), shape, order)
        return mapped
