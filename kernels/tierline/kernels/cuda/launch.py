"""Threads and blocks that an entry is launched with: measured once per GPU, entry and size class, then from a file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tierline.kernels.build import cache_dir, store
from tierline.kernels.cuda.driver import Device

MAX_ROWS_OF_BLOCKS = 65535
"""CUDA's limit of blocks along y; entries walk further rows in steps of it."""


class Geometry(NamedTuple):
    """Threads per block, whole warps, and blocks per multiprocessor; a thread walks on where columns are left."""

    threads: int = 256
    blocks: int = 6

    def checked(self) -> Geometry:
        """Itself. Raises ValueError for parts of warps, which would wait for lanes that are not there."""
        if self.threads not in range(32, 1025, 32) or self.blocks < 1:
            raise ValueError(f"{self} cannot be launched")
        return self

    def grid(self, num_multiprocessors: int, num_rows: int, num_cols: int) -> tuple[int, int]:
        """Blocks along x (columns) and y (rows): as many as there is work for, up to the budget."""
        budget = self.blocks * num_multiprocessors
        y = max(1, min(num_rows, budget, MAX_ROWS_OF_BLOCKS))
        return max(1, min(-(-num_cols // self.threads), -(-budget // y))), y


CANDIDATES = tuple(Geometry(threads, blocks) for threads in (128, 256, 512) for blocks in (2, 4, 6, 8, 16, 32))


class Launcher:
    """Launches entries on one GPU with the geometry that was measured for their size, or a default one."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._known: dict[str, Geometry] | None = None
        self._measuring = False

    def __call__(
        self,
        entry: str,
        num_rows: int,
        num_cols: int,
        stream: int,
        *arguments: Any,
        before: Callable[[], object] | None = None,
    ) -> None:
        """Queue an entry that walks `num_rows` by `num_cols`; see `Device.launch` for the arguments.

        `before` queues what makes a repetition cost what the first run does, where it would be cheaper.
        """
        key = f"{entry} {num_rows.bit_length()}x{num_cols.bit_length()}"
        if self._measuring and key not in self.known():

            def milliseconds(candidate: Geometry) -> float:
                grid = candidate.grid(self._device.num_multiprocessors, num_rows, num_cols)
                best = float("inf")
                for turn in range(4):  # the best of three after one to warm up: interference only ever adds
                    if before:
                        before()
                    with self._device.stopwatch(stream) as times:
                        self._device.launch(entry, grid, candidate.threads, stream, *arguments)
                    best = min(best, times[0]) if turn else best
                return best

            self.known()[key] = min(CANDIDATES, key=milliseconds)
            if before:
                before()
        geometry = self.known().get(key, Geometry())
        grid = geometry.grid(self._device.num_multiprocessors, num_rows, num_cols)
        self._device.launch(entry, grid, geometry.threads, stream, *arguments)

    def known(self) -> dict[str, Geometry]:
        """What was measured, by entry and size class; from the file at first."""
        if self._known is None:
            try:
                stored = json.loads(self._path().read_text())
                self._known = {key: Geometry(*numbers).checked() for key, numbers in stored.items()}
            except (OSError, ValueError, TypeError, AttributeError):  # none yet, or not ours: measured anew
                self._known = {}
        return self._known

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Launches inside time every candidate first if their size is new, and the file is written after them.

        Entries may be repeated: they only write what they wrote before. Raises BuildError where the cache folder is
        not writable.
        """
        before, self._measuring = dict(self.known()), True
        try:
            yield
        finally:
            self._measuring = False
        if self.known() != before:
            store(self._path(), json.dumps(self.known(), indent=1, sort_keys=True).encode())

    def _path(self) -> Path:
        name = re.sub(r"\W+", "-", self._device.name.lower()).strip("-")
        return cache_dir() / "kernels" / f"launch-{self._device.image().stem}-{name}.json"
