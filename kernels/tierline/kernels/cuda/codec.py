"""Codecs on a GPU: arrays that are there already, in; packed bytes, equal to the CPU's, out. And back."""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tierline.kernels.cuda.arrays import DeviceArray, stream_handle, view
from tierline.kernels.cuda.driver import CudaError, Device, device
from tierline.kernels.cuda.launch import Launcher
from tierline.kernels.cuda.memory import Arena, Staging
from tierline.kernels.cuda.tokens import stage_for
from tierline.kernels.cuda.work import Coded, Errors, Work


class Codec:
    """One codec on one GPU. It keeps its buffers between calls, so calls from several threads take turns.

    `stream` is a stream of the library that made the array, or its integer handle; 0 is the default stream.
    """

    def __init__(self, token: str, gpu: Device | int = 0) -> None:
        self.token = token
        self._stage = stage_for(token)
        self.dtypes = self._stage.dtypes
        self._gpu = device(gpu) if isinstance(gpu, int) else gpu
        self._launch = Launcher(self._gpu)
        self._staging, self._arena = Staging(self._gpu), Arena(self._gpu)
        self._lock = threading.Lock()

    def encode(self, x_B: Any, stream: Any = 0, *, seed: int = 0) -> bytes:
        """Bytes of a batch that `stream` (or the array's own) has filled; returns when they are here.

        `seed`, below 2^64, is where stochastic rounding and dither start.
        Raises ValueError for values without a place in the code, CudaError for arrays that the GPU cannot read.
        """
        with self._lock:
            return bytes(self._encode(x_B, stream_handle(stream), seed))

    def encode_view(self, x_B: Any, stream: Any = 0, *, seed: int = 0) -> memoryview:
        """As `encode`, without a copy: the buffer itself, until the next call on this codec."""
        with self._lock:
            return self._encode(x_B, stream_handle(stream), seed)

    def decode(self, data: bytes, out_B: Any, stream: Any = 0, *, seed: int = 0) -> None:
        """Values of `data` into an array of the batch's shape; returns when they are there.

        `seed` is the one that `dithered` coded with.
        Raises ValueError for bytes that no encoder writes, CudaError for arrays that the GPU cannot write.
        """
        stream = stream_handle(stream)
        out = self._checked(view(out_B, stream))
        if not out.writable:
            raise CudaError("the array to decode into is read-only")
        least, most = self._stage.sizes(out.shape)
        if not least <= len(data) <= most:
            needed = str(least) if least == most else f"{least} to {most}"
            raise ValueError(f"{len(data)} bytes of data, shape {list(out.shape)} needs {needed}")
        if out.size == 0:
            return
        staging = self._staging
        with self._lock, self._gpu.current():
            self._admit(out, stream)
            staging.reserve(len(data))
            with self._finished(stream):
                staging.clear_flags(stream)
                staging.send(data, stream)
                self._stage.decode(self._begin(stream, seed), Coded(staging.device, data), out, staging.flag)
                staging.fetch_flags(stream)
            _raise_for(staging.flags(), self._stage.decode_errors)

    def queue(self, x_B: Any, stream: Any = 0) -> int:
        """Only queue what encodes: the packed bytes stay on the GPU, for timing it alone. Returns their number."""
        stream = stream_handle(stream)
        with self._lock, self._gpu.current():
            return self._queue(self._checked(view(x_B, stream)), stream, seed=0)

    def warmup(self, shape: tuple[int, ...]) -> None:
        """Compile, load, take memory, and measure the launches of this size unless this GPU's file has them.

        `shape` is that of a batch. Raises ValueError where it holds no values.
        """
        dtype = self._stage.dtypes[0]
        num_bytes = DeviceArray(0, shape, dtype=dtype).item_bytes * math.prod(shape)
        if not shape or num_bytes <= 0:
            raise ValueError(f"shape {list(shape)}: nothing to warm up with")
        with self._gpu.current():
            x = DeviceArray(self._gpu.driver.handle("cuMemAlloc_v2", num_bytes), shape, dtype=dtype)
            try:
                self._gpu.driver.call("cuMemsetD8Async", x.pointer, self._stage.warm_byte, num_bytes, 0)
                with self._launch.measuring():
                    self.decode(self.encode(x), x)
            finally:
                self._gpu.driver.call("cuMemFree_v2", x.pointer)

    def close(self) -> None:
        """Give back what it holds on the GPU. Further calls take it anew."""
        with self._lock, self._gpu.current():
            self._staging.close()
            self._arena.close()

    def _checked(self, array: DeviceArray) -> DeviceArray:
        """Itself, if it is a batch of what this codec takes."""
        if not array.shape:
            raise CudaError("a scalar is no batch: give it an axis of samples first")
        if array.dtype not in self._stage.dtypes:
            names = " or ".join(self._stage.dtypes)
            raise CudaError(f"{self.token} takes {names} on a GPU, got {array.dtype}; cast it first")
        return array

    def _encode(self, x_B: Any, stream: int, seed: int) -> memoryview:
        x = self._checked(view(x_B, stream))
        if x.size == 0:
            return memoryview(bytes(self._stage.sizes(x.shape)[0]))
        with self._gpu.current(), self._finished(stream):
            num_bytes = self._queue(x, stream, seed)
            self._staging.fetch(stream)
        _raise_for(self._staging.flags(), self._stage.encode_errors)
        return memoryview((ctypes.c_ubyte * num_bytes).from_address(self._staging.host)).cast("B").toreadonly()

    def _queue(self, x: DeviceArray, stream: int, seed: int) -> int:
        self._admit(x, stream)
        staging = self._staging

        def room(num_bytes: int) -> tuple[int, int]:
            staging.reserve(num_bytes)
            staging.clear_flags(stream)
            return staging.device, staging.flag

        return self._stage.encode(self._begin(stream, seed), x, room)

    @contextmanager
    def _finished(self, stream: int) -> Iterator[None]:
        """What is queued inside is done on the way out, also where it is refused: buffers serve the next call."""
        try:
            yield
        except BaseException:
            with suppress(CudaError):  # what went wrong first is told
                self._gpu.synchronize(stream)
            raise
        self._gpu.synchronize(stream)

    def _begin(self, stream: int, seed: int) -> Work:
        """Kept until the next one begins, since copies that it queued read from it."""
        self._work = Work(self._gpu, self._launch, self._arena, stream, seed)
        return self._work

    def _admit(self, array: DeviceArray, stream: int) -> None:
        """The array is on this GPU, and `stream` comes after the one that fills it."""
        self._gpu.check_pointer(array.pointer)
        if array.pointer % array.item_bytes:
            raise CudaError(f"address {array.pointer:#x} is not aligned to {array.dtype}")
        if array.stream is not None and array.stream != stream:
            self._gpu.wait_for(array.stream, stream)


def _raise_for(flags: list[int], errors: Errors) -> None:
    """The first stage's lowest bit is what the CPU says first."""
    for flag, words in zip(flags, errors, strict=False):
        if flag:
            raise ValueError(words[flag & -flag])
