"""Images of a folder in sorted order. Where they lie in subfolders, the first level names the class.

Class indices follow the sorted subfolder names, as is usual for image folders; images at the top have no truth.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from tierline.core.clock import MonotonicClock
from tierline.core.errors import ConfigError, DataError
from tierline.core.protocols import Capture, Clock
from tierline.core.source._pace import Pace
from tierline.core.types import Array

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm"})


class Folder:
    """Greyscale files give (H, W), all others (H, W, 3) RGB, uint8. `seq` is the index; with `loop` it runs on."""

    def __init__(
        self,
        *,
        location: str,
        view: str,
        view_index: int,
        loop: bool = False,
        rate: float = 0.0,
        clock: Clock | None = None,
    ) -> None:
        if not location:
            raise ConfigError("no folder; write folder:PATH")
        self._path = Path(location)
        self._loop = loop
        self._clock = clock or MonotonicClock()
        self._pace = Pace(rate, clock=clock)
        self._files: list[tuple[Path, int | None]] = []
        self._k = 0

    @property
    def num_dropped(self) -> int:
        """Always 0: files wait."""
        return 0

    async def check(self) -> None:
        """Raises DataError when there are no images."""
        await asyncio.to_thread(_list_images, self._path)

    async def open(self) -> None:
        """List the images. Raises DataError when there are none."""
        self._files = await asyncio.to_thread(_list_images, self._path)

    async def capture(self) -> Capture | None:
        """The next image; raises DataError for a file that is none (and goes on behind it when asked again)."""
        if not self._files or (self._k >= len(self._files) and not self._loop):
            return None
        k = self._k
        self._k += 1
        await self._pace.wait(k)
        file, truth = self._files[k % len(self._files)]
        began_ns = self._clock.now_ns()
        image = await asyncio.to_thread(_read_image, file)
        return Capture(image, k, truth, self._clock.now_ns() - began_ns)

    async def close(self) -> None:
        self._files = []


def _list_images(root: Path) -> list[tuple[Path, int | None]]:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    files = sorted(f for f in root.rglob("*") if f.suffix.lower() in _SUFFIXES and f.is_file())
    if not files:
        raise DataError(f"{root}: no images inside (looked for {', '.join(sorted(_SUFFIXES))})")
    parts = [f.relative_to(root).parts for f in files]
    classes = {name: i for i, name in enumerate(sorted({p[0] for p in parts if len(p) > 1}))}
    return [(f, classes[p[0]] if len(p) > 1 else None) for f, p in zip(files, parts, strict=True)]


def _read_image(file: Path) -> Array:
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: not a readable image: {error}") from error
