"""One call of a codec on a GPU: launches on one stream, and the memory between them."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from ctypes import c_float, c_int, c_longlong, c_ulonglong
from functools import partial
from typing import Any, NamedTuple, Protocol

from tierline.kernels.cuda.arrays import DeviceArray
from tierline.kernels.cuda.driver import Device
from tierline.kernels.cuda.launch import Launcher
from tierline.kernels.cuda.memory import Arena

Shape = tuple[int, ...]
Errors = tuple[dict[int, str], ...]
"""For each int32 of the flags, what its bits mean, the lowest first: outer stages before those that they wrap."""
Room = Callable[[int], tuple[int, int]]
"""From a number of bytes to where they go, aligned to 16, and where the flags of this stage are."""

_TYPES: dict[str, Any] = {"p": c_ulonglong, "n": c_longlong, "i": c_int, "u": c_ulonglong, "f": c_float}
_SCAN = 64  # numbers that one thread adds up; as in scan.h


class Coded(NamedTuple):
    """Bytes to decode: an address of the GPU, aligned to 16, and the bytes themselves where a caller gave them."""

    device: int
    host: bytes = b""


class Stage(Protocol):
    """A stage of a token on a GPU: which entries it launches in which order; all addresses are the GPU's."""

    @property
    def dtypes(self) -> tuple[str, ...]: ...
    @property
    def encode_errors(self) -> Errors: ...
    @property
    def decode_errors(self) -> Errors: ...
    @property
    def warm_byte(self) -> int:
        """Memory filled with it holds values that the stage has a place for."""
        ...

    @property
    def is_flat(self) -> bool:
        """Whether each value is coded by itself, so that rows behind one another are coded as one row would be."""
        ...

    def sizes(self, shape: Shape) -> tuple[int, int]:
        """Least and most bytes of a batch of this shape, equal for all but `sparse_bitmap`."""
        ...

    def encode(self, work: Work, x: DeviceArray, room: Room) -> int:
        """Queue what codes a batch of at least one value; asks for room once, before a launch that may set a flag.

        Returns the number of bytes.
        """
        ...

    def decode(self, work: Work, data: Coded, x: DeviceArray, bad: int) -> None:
        """Queue the reverse, flags at `bad`. Raises ValueError for what the bytes on the host tell at once."""
        ...


class Work:
    """What stages launch with. Memory that it hands out is good until the next call's work begins."""

    def __init__(self, gpu: Device, launch: Launcher, arena: Arena, stream: int, seed: int = 0) -> None:
        arena.begin()
        self._gpu, self._launch, self._arena, self._stream = gpu, launch, arena, stream
        self._sent: list[Any] = []
        self.seed = seed

    def __call__(
        self,
        entry: str,
        letters: str,
        num_rows: int,
        num_cols: int,
        *arguments: float,
        before: Callable[[], object] | None = None,
    ) -> None:
        """Queue an entry over rows and columns; `letters` are its parameters' types, as `library.bind` has them.

        `before` queues what the entry needs to start from, where it would otherwise add to what it left before.
        """
        if before:
            before()
        values = [_TYPES[letter](argument) for letter, argument in zip(letters, arguments, strict=True)]
        self._launch(entry, num_rows, num_cols, self._stream, *values, before=before)

    def take(self, num_bytes: int) -> int:
        """Address of so many bytes of scratch, aligned to 256; they hold anything."""
        return self._arena.take(num_bytes)

    def clear(self, pointer: int, num_bytes: int) -> None:
        if num_bytes:
            self._gpu.driver.call("cuMemsetD8Async", pointer, 0, num_bytes, self._stream)

    def clearing(self, pointer: int, num_bytes: int) -> Callable[[], None]:
        """`clear`, to be done when called."""
        return partial(self.clear, pointer, num_bytes)

    def move(self, source: int, stride: int, to: int, to_stride: int, num_rows: int, num_bytes: int) -> None:
        """Rows of bytes from one layout to another, at any address."""
        columns = (num_bytes + 7) // 8
        self("tl_rows_move", "ppnnnn", num_rows, columns, source, to, num_rows, num_bytes, stride, to_stride)

    def place(self, source: int, to: int, places: Sequence[tuple[int, int, int]]) -> None:
        """Runs of bytes by (offset from `source`, offset from `to`, length)."""
        columns = (max((length for _, _, length in places), default=0) + 7) // 8
        if columns:
            table = self._send([number for place in places for number in place])
            self("tl_rows_place", "pppn", len(places), columns, source, to, table, len(places))

    def starts(self, counts: int, num: int) -> int:
        """Address of `num + 1` int64: running sums of the int64 at `counts`, from 0 to their total."""
        above = 0
        if num > _SCAN:
            num_sums = -(-num // _SCAN)
            sums = self.take(8 * num_sums)
            self("tl_scan_up", "ppn", 1, num_sums, counts, sums, num)
            above = self.starts(sums, num_sums)
        starts = self.take(8 * (num + 1))
        self("tl_scan_down", "pppn", 1, -(-num // _SCAN), counts, above, starts, num)
        return starts

    def read(self, numbers: int, num: int, step: int = 1) -> list[int]:
        """Every `step`-th of the int64 at an address, brought here: waits for the stream."""
        if step > 1:
            picked = self.take(8 * num)
            self("tl_scan_pick", "ppnn", 1, num, numbers, picked, num, step)
            numbers = picked
        here = (c_longlong * num)()
        self._gpu.driver.call("cuMemcpyDtoHAsync_v2", ctypes.addressof(here), numbers, 8 * num, self._stream)
        self._gpu.synchronize(self._stream)
        return list(here)

    def _send(self, numbers: Sequence[int]) -> int:
        """Address of these int64 on the GPU."""
        here, there = (c_longlong * len(numbers))(*numbers), self.take(8 * len(numbers))
        self._sent.append(here)  # until the work is done
        size = ctypes.sizeof(here)
        self._gpu.driver.call("cuMemcpyHtoDAsync_v2", there, ctypes.addressof(here), size, self._stream)
        return there


def rows_of(shape: Shape) -> tuple[int, int]:
    """Rows of a batch, and values in each."""
    return shape[0], math.prod(shape[1:])


def check_exact(inner: Stage) -> None:
    """Raise ValueError unless the stage codes float32 rows in a size that follows from their length."""
    smallest, largest = inner.sizes((1, 9))
    if smallest != largest or "float32" not in inner.dtypes:
        raise ValueError("what it wraps must write as many bytes as follow from the number of float32 values")
