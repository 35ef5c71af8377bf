"""Codecs on a GPU: float32 arrays that are there already, in; packed bytes, equal to the CPU's, out. And back."""

from __future__ import annotations

import ctypes
import math
import threading
from typing import Any, Protocol

from tierline.kernels.cuda.affine import Affine
from tierline.kernels.cuda.arrays import DeviceArray, stream_handle, view
from tierline.kernels.cuda.bitplane import Bitplane
from tierline.kernels.cuda.driver import CudaError, Device, device
from tierline.kernels.cuda.launch import Launcher
from tierline.kernels.cuda.memory import Scratch, Staging


class _Kernels(Protocol):
    """Which entries a codec launches in which order; all addresses are the GPU's."""

    @property
    def encode_errors(self) -> dict[int, str]: ...
    @property
    def decode_errors(self) -> dict[int, str]: ...

    def num_bytes(self, shape: tuple[int, ...]) -> int: ...
    def scratch_bytes(self, shape: tuple[int, ...]) -> int: ...
    def encode(
        self, launch: Launcher, stream: int, shape: tuple[int, ...], x: int, out: int, bad: int, scratch: int, seed: int
    ) -> None: ...
    def decode(self, launch: Launcher, stream: int, shape: tuple[int, ...], data: int, x: int, bad: int) -> None: ...


def kernels(token: str) -> _Kernels:
    """Of a codec's token, as `affine:4:per=channel` or `bitplane`. Raises ValueError for what only the CPU codes."""
    name, *words = token.split(":")
    options: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        options |= {key: value} if equals else {"bits": key}
    if token == "bitplane":
        return Bitplane()
    if name != "affine" or not options.keys() <= {"bits", "per", "rounding"}:
        raise ValueError(f"{token!r} does not run on a GPU; bitplane does, and affine with bits, per and rounding")
    return Affine(**options)


class Codec:
    """One codec on one GPU. It keeps its buffers between calls, so calls from several threads take turns.

    `stream` is a stream of the library that made the array, or its integer handle; 0 is the default stream.
    """

    def __init__(self, token: str, gpu: Device | int = 0) -> None:
        self.token = token
        self._kernels = kernels(token)
        self._gpu = device(gpu) if isinstance(gpu, int) else gpu
        self._launch = Launcher(self._gpu)
        self._staging, self._scratch = Staging(self._gpu), Scratch(self._gpu)
        self._lock = threading.Lock()

    def encode(self, x_B: Any, stream: Any = 0, *, seed: int = 0) -> bytes:
        """Bytes of a batch that `stream` (or the array's own) has filled; returns when they are here.

        `seed`, below 2^64, is where stochastic rounding starts.
        Raises ValueError for values without a place in the code, CudaError for arrays that the GPU cannot read.
        """
        with self._lock:
            return bytes(self._encode(x_B, stream_handle(stream), seed))

    def encode_view(self, x_B: Any, stream: Any = 0, *, seed: int = 0) -> memoryview:
        """As `encode`, without a copy: the buffer itself, until the next call on this codec."""
        with self._lock:
            return self._encode(x_B, stream_handle(stream), seed)

    def decode(self, data: bytes, out_B: Any, stream: Any = 0) -> None:
        """Values of `data` into an array of the batch's shape; returns when they are there.

        Raises ValueError for bytes that no encoder writes, CudaError for arrays that the GPU cannot write.
        """
        stream = stream_handle(stream)
        out = view(out_B, stream)
        if not out.writable:
            raise CudaError("the array to decode into is read-only")
        expected = self._num_bytes(out)
        if len(data) != expected:
            raise ValueError(f"{len(data)} bytes of data, shape {list(out.shape)} needs {expected}")
        if out.size == 0:
            return
        staging = self._staging
        with self._lock, self._gpu.current():
            self._admit(out, stream)
            staging.reserve(expected)
            staging.clear_flag(stream)
            staging.send(data, stream)
            self._kernels.decode(self._launch, stream, out.shape, staging.device, out.pointer, staging.flag)
            staging.fetch_flag(stream)
            self._gpu.synchronize(stream)
            _raise_for(staging.flag_value(), self._kernels.decode_errors)

    def queue(self, x_B: Any, stream: Any = 0) -> int:
        """Only queue what encodes: the packed bytes stay on the GPU, for timing it alone. Returns their number."""
        stream = stream_handle(stream)
        with self._lock, self._gpu.current():
            return self._queue(view(x_B, stream), stream, seed=0)

    def warmup(self, shape: tuple[int, ...]) -> None:
        """Compile, load, take memory, and measure the launches of this size unless this GPU's file has them.

        `shape` is that of a batch. Raises ValueError where it holds no values.
        """
        num_bytes = 4 * math.prod(shape)
        if not shape or num_bytes <= 0:
            raise ValueError(f"shape {list(shape)}: nothing to warm up with")
        with self._gpu.current():
            x = DeviceArray(self._gpu.driver.handle("cuMemAlloc_v2", num_bytes), shape)
            try:
                self._gpu.driver.call("cuMemsetD8Async", x.pointer, 0, num_bytes, 0)
                with self._launch.measuring():
                    self.decode(self.encode(x), x)
            finally:
                self._gpu.driver.call("cuMemFree_v2", x.pointer)

    def close(self) -> None:
        """Give back what it holds on the GPU. Further calls take it anew."""
        with self._lock, self._gpu.current():
            self._staging.close()
            self._scratch.close()

    def _num_bytes(self, array: DeviceArray) -> int:
        if not array.shape:
            raise CudaError("a scalar is no batch: give it an axis of samples first")
        return self._kernels.num_bytes(array.shape)

    def _encode(self, x_B: Any, stream: int, seed: int) -> memoryview:
        x = view(x_B, stream)
        if x.size == 0:
            return memoryview(bytes(self._num_bytes(x)))
        with self._gpu.current():
            num_bytes = self._queue(x, stream, seed)
            self._staging.fetch(stream)
            self._gpu.synchronize(stream)
        _raise_for(self._staging.flag_value(), self._kernels.encode_errors)
        return memoryview((ctypes.c_ubyte * num_bytes).from_address(self._staging.host)).cast("B").toreadonly()

    def _queue(self, x: DeviceArray, stream: int, seed: int) -> int:
        num_bytes = self._num_bytes(x)
        self._admit(x, stream)
        staging = self._staging
        staging.reserve(num_bytes)
        staging.clear_flag(stream)
        scratch = self._scratch.reserve(self._kernels.scratch_bytes(x.shape))
        self._kernels.encode(self._launch, stream, x.shape, x.pointer, staging.device, staging.flag, scratch, seed)
        return num_bytes

    def _admit(self, array: DeviceArray, stream: int) -> None:
        """The array is on this GPU, and `stream` comes after the one that fills it."""
        self._gpu.check_pointer(array.pointer)
        if array.pointer % 4:
            raise CudaError(f"address {array.pointer:#x} is not aligned to float32")
        if array.stream is not None and array.stream != stream:
            self._gpu.wait_for(array.stream, stream)


def _raise_for(flag: int, errors: dict[int, str]) -> None:
    """The lowest bit is what the CPU says first."""
    if flag:
        raise ValueError(errors[flag & -flag])
