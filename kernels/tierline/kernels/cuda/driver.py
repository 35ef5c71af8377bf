"""The CUDA driver API through ctypes: what codecs need of `libcuda.so.1`, and its errors as exceptions.

Streams are integers here, the handles that TensorRT takes; 0 is the default stream. Contexts are primary contexts, as
in torch, CuPy, TensorRT and `pycuda.autoprimaryctx`, so all of these see the same memory and streams. PyCUDA itself is
not called: it launches on its own stream objects only, and a feature is encoded on the stream that made it.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from tierline.kernels.build import BuildError
from tierline.kernels.cubin import cubin

_p, _n, _u = c_void_p, c_size_t, c_uint
# Parameters of each function used; `_v2` is what the C header's macros make of the plain name.
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuInit": (_u,),
    "cuGetErrorName": (c_int, _p),
    "cuGetErrorString": (c_int, _p),
    "cuDeviceGetCount": (_p,),
    "cuDeviceGet": (_p, c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (_p, c_int, c_int),
    "cuDevicePrimaryCtxRetain": (_p, c_int),
    "cuCtxPushCurrent_v2": (_p,),
    "cuCtxPopCurrent_v2": (_p,),
    "cuModuleLoadData": (_p, c_char_p),
    "cuModuleGetFunction": (_p, _p, c_char_p),
    "cuLaunchKernel": (_p, _u, _u, _u, _u, _u, _u, _u, _p, _p, _p),
    "cuMemAlloc_v2": (_p, _n),
    "cuMemFree_v2": (c_ulonglong,),
    "cuMemHostAlloc": (_p, _n, _u),
    "cuMemFreeHost": (_p,),
    "cuMemHostGetDevicePointer_v2": (_p, _p, _u),
    "cuPointerGetAttribute": (_p, c_int, c_ulonglong),
    "cuMemcpyDtoHAsync_v2": (_p, c_ulonglong, _n, _p),
    "cuMemcpyHtoDAsync_v2": (c_ulonglong, _p, _n, _p),
    "cuMemsetD8Async": (c_ulonglong, ctypes.c_ubyte, _n, _p),
    "cuStreamCreate": (_p, _u),
    "cuStreamDestroy_v2": (_p,),
    "cuStreamSynchronize": (_p,),
    "cuStreamWaitEvent": (_p, _p, _u),
    "cuStreamBeginCapture_v2": (_p, c_int),
    "cuStreamEndCapture": (_p, _p),
    "cuGraphInstantiateWithFlags": (_p, _p, c_ulonglong),
    "cuGraphLaunch": (_p, _p),
    "cuGraphExecDestroy": (_p,),
    "cuGraphDestroy": (_p,),
    "cuEventCreate": (_p, _u),
    "cuEventRecord": (_p, _p),
    "cuEventSynchronize": (_p,),
    "cuEventElapsedTime": (_p, _p, _p),
    "cuEventDestroy_v2": (_p,),
}
_MEASURING: dict[str, tuple[Any, ...]] = {
    "cuDriverGetVersion": (_p,),
    "cuMemcpyDtoDAsync_v2": (c_ulonglong, c_ulonglong, _n, _p),
}
"""Of benchmarks alone: bound when called, for codecs run on a driver that lacks them."""
_MULTIPROCESSORS, _INTEGRATED, _MAJOR, _MINOR = 16, 18, 75, 76  # CU_DEVICE_ATTRIBUTE_...
_CONTEXT, _DEVICE_ORDINAL = 1, 9  # CU_POINTER_ATTRIBUTE_...


class CudaError(Exception):
    """No driver, no device, or what the driver answered to a call."""


class Driver:
    """A loaded and initialised driver. Raises CudaError where there is none, or no device."""

    def __init__(self, path: str = "libcuda.so.1") -> None:
        try:
            self._lib = ctypes.CDLL(path)
            for name, types in _FUNCTIONS.items():
                getattr(self._lib, name).argtypes = types
        except (OSError, AttributeError) as error:
            raise CudaError(f"no NVIDIA driver: {error}; install one, or run on the CPU") from error
        self.call("cuInit", 0)
        self.num_devices = self.integer("cuDeviceGetCount")
        if not self.num_devices:
            raise CudaError("the NVIDIA driver finds no device; check nvidia-smi and CUDA_VISIBLE_DEVICES")

    def call(self, name: str, *arguments: Any) -> None:
        """Raises CudaError unless the driver answers with success."""
        function = getattr(self._lib, name)
        if name in _MEASURING:
            function.argtypes = _MEASURING[name]
        status = function(*arguments)
        if status:
            raise CudaError(f"{name}: {self._words(status)}")

    def integer(self, name: str, *arguments: Any) -> int:
        """Call a function whose first parameter is where an int goes."""
        value = c_int()
        self.call(name, byref(value), *arguments)
        return value.value

    def handle(self, name: str, *arguments: Any) -> int:
        """Call a function whose first parameter is where a handle or an address goes."""
        value = c_void_p()
        self.call(name, byref(value), *arguments)
        return value.value or 0

    def _words(self, status: int) -> str:
        name, text = c_char_p(), c_char_p()
        self._lib.cuGetErrorName(status, byref(name))
        self._lib.cuGetErrorString(status, byref(text))
        return f"{(name.value or b'unknown error').decode()} ({status}): {(text.value or b'').decode()}"


class Device:
    """One GPU with its primary context and the kernels loaded into it. Make it with `device()`, which shares it.

    `arch` is such as `sm_87`; `integrated` GPUs (Jetson) share their memory with the CPU.
    """

    def __init__(self, driver: Driver, ordinal: int) -> None:
        if not 0 <= ordinal < driver.num_devices:
            raise CudaError(f"no GPU {ordinal}: the driver counts {driver.num_devices}")
        self.driver, self.ordinal = driver, ordinal
        number = driver.integer("cuDeviceGet", ordinal)
        name = ctypes.create_string_buffer(256)
        driver.call("cuDeviceGetName", name, len(name), number)
        self.name = name.value.decode()
        self.num_multiprocessors, integrated, major, minor = (
            driver.integer("cuDeviceGetAttribute", which, number)
            for which in (_MULTIPROCESSORS, _INTEGRATED, _MAJOR, _MINOR)
        )
        self.integrated, self.arch = bool(integrated), f"sm_{major}{minor}"
        self._context = driver.handle("cuDevicePrimaryCtxRetain", number)
        self._functions: dict[str, int] = {}
        self._module: int | None = None
        self._lock = threading.Lock()

    @contextmanager
    def current(self) -> Iterator[None]:
        """Its context is this thread's current one inside the block, and the one before again after it."""
        self.driver.call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self.driver.handle("cuCtxPopCurrent_v2")

    def image(self) -> Path:
        """The cubin for this GPU, compiled now unless the cache holds it. Raises CudaError."""
        try:
            return cubin(self.arch)
        except BuildError as error:
            raise CudaError(f"{self.name}: {error}") from error

    def function(self, entry: str) -> int:
        """Handle of a kernel; the module is compiled and loaded at the first one. Raises CudaError."""
        with self._lock:
            if self._module is None:
                self._module = self.driver.handle("cuModuleLoadData", self.image().read_bytes())
            if entry not in self._functions:
                self._functions[entry] = self.driver.handle("cuModuleGetFunction", self._module, entry.encode())
            return self._functions[entry]

    def launch(self, entry: str, grid: tuple[int, int], threads: int, stream: int, *arguments: Any) -> None:
        """Queue a kernel on `stream`. Arguments are ctypes values in the order of the entry's parameters."""
        pointers = (c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
        x, y = grid
        self.driver.call("cuLaunchKernel", self.function(entry), x, y, 1, threads, 1, 1, 0, stream, pointers, None)

    def check_pointer(self, pointer: int) -> None:
        """Raise CudaError unless the address is memory that this GPU's codecs may touch."""
        try:
            ordinal = self.driver.integer("cuPointerGetAttribute", _DEVICE_ORDINAL, pointer)
        except CudaError as error:
            raise CudaError(f"address {pointer:#x} is no memory that CUDA knows: {error}") from None
        if ordinal != self.ordinal:
            raise CudaError(f"address {pointer:#x} is on GPU {ordinal}, this codec runs on GPU {self.ordinal}")
        try:
            context = self.driver.handle("cuPointerGetAttribute", _CONTEXT, pointer)
        except CudaError:
            context = 0
        if context not in (0, self._context):  # memory from a pool belongs to none
            raise CudaError(
                f"address {pointer:#x} belongs to a context other than the GPU's primary one, where it cannot be read; "
                "with PyCUDA import pycuda.autoprimaryctx, not pycuda.autoinit"
            )

    def synchronize(self, stream: int) -> None:
        self.driver.call("cuStreamSynchronize", stream)

    def wait_for(self, producer: int, stream: int) -> None:
        """What is queued on `stream` from here on starts after what is queued on `producer` now."""
        event = self.driver.handle("cuEventCreate", 2)  # without timing
        try:
            self.driver.call("cuEventRecord", event, producer)
            self.driver.call("cuStreamWaitEvent", stream, event, 0)
        finally:
            self.driver.call("cuEventDestroy_v2", event)  # takes effect once the work before it is done

    def record(self, stream: int, queue: Callable[[], None]) -> int:
        """A CUDA graph of what `queue` puts on `stream`, without running it: its executable handle. Raises CudaError.

        Launch it with cuGraphLaunch, give it back with cuGraphExecDestroy. The stream must not be the default one.
        """
        self.driver.call("cuStreamBeginCapture_v2", stream, 1)  # thread-local: other threads may allocate meanwhile
        try:
            queue()
        except BaseException:
            with suppress(CudaError):  # what made `queue` fail has invalidated the graph, too
                self.driver.call("cuGraphDestroy", self._end_capture(stream))
            raise
        graph = self._end_capture(stream)
        try:
            return self.driver.handle("cuGraphInstantiateWithFlags", graph, 0)
        finally:
            self.driver.call("cuGraphDestroy", graph)

    def _end_capture(self, stream: int) -> int:
        graph = c_void_p()
        self.driver.call("cuStreamEndCapture", stream, byref(graph))
        return graph.value or 0

    @contextmanager
    def stopwatch(self, stream: int) -> Iterator[list[float]]:
        """Milliseconds that the work queued inside the block took on the GPU, appended to the list after it."""
        start, end = self.driver.handle("cuEventCreate", 0), self.driver.handle("cuEventCreate", 0)
        times: list[float] = []
        try:
            self.driver.call("cuEventRecord", start, stream)
            yield times
            self.driver.call("cuEventRecord", end, stream)
            self.driver.call("cuEventSynchronize", end)
            elapsed = c_float()
            self.driver.call("cuEventElapsedTime", byref(elapsed), start, end)
            times.append(elapsed.value)
        finally:
            for event in (start, end):
                self.driver.call("cuEventDestroy_v2", event)


@cache
def device(ordinal: int = 0) -> Device:
    """The GPU of this number, with its kernels loaded once per process. Raises CudaError."""
    return Device(_driver(), ordinal)


@cache
def _driver() -> Driver:
    return Driver()
