"""Codecs on a GPU for `tierline bench codec --device cuda`: features that are there already, bytes in host memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager

import numpy as np

from tierline.core.coding import gpu_codec
from tierline.core.errors import EngineError, MissingDependency, ShapeMismatch
from tierline.core.types import Array, TensorSpec
from tierline.kernels.cuda import CudaError, Device, DeviceArray, device

Timed = tuple[int, float, float]
"""Bytes, seconds to encode, seconds to decode."""


class GpuTrial:
    """One batch on the first GPU; what is decoded comes back into `into`. Raises EngineError where the GPU fails."""

    def __init__(self, gpu: Device, x: int, y: int, pinned: int, x_B: Array, into: Array) -> None:
        self._gpu, self._x, self._y, self._pinned = gpu, x, y, pinned
        self._x_B, self._into = DeviceArray(x, x_B.shape), into
        self._y_B = DeviceArray(y, x_B.shape)

    def copies(self, best_s: Callable[[Callable[[], object]], float]) -> Timed:
        """The float32 values to pinned host memory, and back."""
        num_bytes = self._into.nbytes

        def out() -> None:
            self._gpu.driver.call("cuMemcpyDtoHAsync_v2", self._pinned, self._x, num_bytes, 0)
            self._gpu.synchronize(0)

        def back() -> None:
            self._gpu.driver.call("cuMemcpyHtoDAsync_v2", self._y, self._pinned, num_bytes, 0)
            self._gpu.synchronize(0)

        with _told(), self._gpu.current():
            return num_bytes, best_s(out), best_s(back)

    def measure(self, token: str, best_s: Callable[[Callable[[], object]], float]) -> Timed:
        """From a call until packed bytes are in host memory, and back. Raises CodecError for what has no GPU path."""
        with _told(), ExitStack() as stack:
            codec = stack.enter_context(closing(gpu_codec(token, self._gpu)))
            codec.warmup(self._x_B.shape)
            payload, limit = codec.encode(self._x_B), TensorSpec("float32", self._x_B.shape[1:])
            encode_s = best_s(lambda: codec.encode(self._x_B))
            decode_s = best_s(lambda: codec.decode(payload, limit, self._y_B, max_rows=len(self._into)))
            with self._gpu.current():
                self._gpu.driver.call("cuMemcpyDtoHAsync_v2", self._into.ctypes.data, self._y, self._into.nbytes, 0)
                self._gpu.synchronize(0)
            return payload.num_bytes, encode_s, decode_s


@contextmanager
def gpu_trial(x_B: Array, into: Array) -> Iterator[GpuTrial]:
    """The batch on a GPU. Raises MissingDependency where there is none, ShapeMismatch for other values than float32."""
    if x_B.dtype != np.float32:
        raise ShapeMismatch(f"--device cuda: codecs there take float32, not {x_B.dtype}; measure those on the CPU")
    try:
        gpu = device()
    except CudaError as error:
        raise MissingDependency(f"--device cuda: {error}") from None
    x_B = np.ascontiguousarray(x_B)
    with _told(), ExitStack() as stack:
        stack.enter_context(gpu.current())
        places = []
        for make, free, flags in (
            ("cuMemAlloc_v2", "cuMemFree_v2", ()),
            ("cuMemAlloc_v2", "cuMemFree_v2", ()),
            ("cuMemHostAlloc", "cuMemFreeHost", (0,)),
        ):
            places.append(gpu.driver.handle(make, x_B.nbytes, *flags))
            stack.callback(gpu.driver.call, free, places[-1])
        gpu.driver.call("cuMemcpyHtoDAsync_v2", places[0], x_B.ctypes.data, x_B.nbytes, 0)
        gpu.synchronize(0)
        x, y, pinned = places
        yield GpuTrial(gpu, x, y, pinned, x_B, into)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except CudaError as error:
        raise EngineError(f"--device cuda: {error}") from None
