"""Images of a folder in sorted order, with what is known of them.

`truth=index` (the default) and `truth=label`: where images lie in subfolders, the first level names the class; indices
follow the sorted names, and images at the top have no truth. `truth=boxes`, `truth=values`: see `_truths`.
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
from tierline.core.source._truths import truths_of
from tierline.core.types import Array, Truth

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
        truth: str = "index",
        clock: Clock | None = None,
    ) -> None:
        if not location:
            raise ConfigError("no folder; write folder:PATH")
        self._path = Path(location)
        self._loop = loop
        self._truth = truth
        self._clock = clock or MonotonicClock()
        self._pace = Pace(rate, clock=clock)
        self._files: list[tuple[Path, Truth | None]] = []
        self._k = 0

    @property
    def num_dropped(self) -> int:
        """Always 0: files wait."""
        return 0

    async def check(self) -> None:
        """Raises DataError when there are no images, or what is known of them cannot be read."""
        await asyncio.to_thread(_list_images, self._path, self._truth)

    async def open(self) -> None:
        """List the images. Raises what `check` raises."""
        self._files = await asyncio.to_thread(_list_images, self._path, self._truth)

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


def _list_images(root: Path, truth: str) -> list[tuple[Path, Truth | None]]:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    files = sorted(f for f in root.rglob("*") if f.suffix.lower() in _SUFFIXES and f.is_file())
    if not files:
        raise DataError(f"{root}: no images inside (looked for {', '.join(sorted(_SUFFIXES))})")
    return list(zip(files, truths_of(truth, root, files), strict=True))


def _read_image(file: Path) -> Array:
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: not a readable image: {error}") from error
