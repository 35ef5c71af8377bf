"""Images handed in by code of the same process: `source.submit(image)`."""

from __future__ import annotations

import asyncio
import threading
from collections import deque

import numpy as np

from tierline.core.errors import AdmissionRefused, ConfigError, ShapeMismatch
from tierline.core.protocols import Capture
from tierline.core.types import Array, Truth


class Api:
    """A bounded queue of `depth` images, filled from any thread and emptied by the agent."""

    def __init__(self, *, location: str = "", view: str, view_index: int, depth: int = 64) -> None:
        if location:
            raise ConfigError(f"api takes no location, got {location!r}")
        if depth < 1:
            raise ConfigError(f"depth = {depth} must be at least 1")
        self._view = view
        self._depth = depth
        self._lock = threading.Lock()
        self._waiting: deque[Capture] = deque()
        self._finished = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()

    @property
    def num_dropped(self) -> int:
        """Always 0: a full queue refuses, so that the caller knows."""
        return 0

    async def check(self) -> None:
        """Nothing can be missing."""

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()

    def submit(self, image: Array, seq: int | None = None, truth: Truth | None = None) -> None:
        """Queue one image, (H, W[, C]) uint8 or already preprocessed (C, H, W) float32; it must not change afterwards.

        Raises AdmissionRefused when the queue is full or finished, ShapeMismatch for another kind of array.
        """
        raw = image.dtype == np.uint8 and image.ndim in (2, 3)
        if not raw and not (image.dtype == np.float32 and image.ndim == 3):
            raise ShapeMismatch(
                f"view {self._view!r}: expected uint8 (H, W[, C]) or float32 (C, H, W), "
                f"got {image.dtype}{list(image.shape)}"
            )
        with self._lock:
            if self._finished:
                raise AdmissionRefused(f"view {self._view!r}: closed, it takes no more images")
            if len(self._waiting) >= self._depth:
                raise AdmissionRefused(f"view {self._view!r}: {self._depth} images are waiting; retry later")
            self._waiting.append(Capture(image, seq, truth))
        self._wake()

    def finish(self) -> None:
        """No more images will come: `capture` returns None once the queued ones are taken."""
        with self._lock:
            self._finished = True
        self._wake()

    async def capture(self) -> Capture | None:
        while True:
            self._changed.clear()
            with self._lock:
                if self._waiting:
                    return self._waiting.popleft()
                if self._finished:
                    return None
            await self._changed.wait()

    async def close(self) -> None:
        """Refuse further images, forget queued ones and end a waiting `capture`."""
        with self._lock:
            self._waiting.clear()
        self.finish()

    def _wake(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._changed.set)
