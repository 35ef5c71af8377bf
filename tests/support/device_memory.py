"""NumPy arrays to a GPU, or to the mock of one, and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from tierline.kernels.cuda import Device, DeviceArray


class DeviceMemory:
    """Allocations of one test, freed together."""

    def __init__(self, gpu: Device) -> None:
        self.gpu = gpu
        self._pointers: list[int] = []

    def empty(self, shape: tuple[int, ...], offset_bytes: int = 0, dtype: str = "float32") -> DeviceArray:
        """At an address that is `offset_bytes` past a well aligned one; float32 are filled with NaN."""
        num_bytes = np.dtype(dtype).itemsize * int(np.prod(shape)) + offset_bytes
        with self.gpu.current():
            pointer = self.gpu.driver.handle("cuMemAlloc_v2", max(num_bytes, 1))
            self._pointers.append(pointer)
            self.gpu.driver.call("cuMemsetD8Async", pointer, 0xFF, max(num_bytes, 1), 0)
            self.gpu.synchronize(0)
        return DeviceArray(pointer + offset_bytes, shape, dtype=dtype)

    def put(self, x: np.ndarray, offset_bytes: int = 0, stream: int = 0) -> DeviceArray:
        """A copy of `x`, queued on `stream`; the default stream is waited for."""
        array = self.empty(x.shape, offset_bytes, str(x.dtype))
        x = np.ascontiguousarray(x)
        with self.gpu.current():
            if x.size:
                self.gpu.driver.call("cuMemcpyHtoDAsync_v2", array.pointer, x.ctypes.data, x.nbytes, stream)
            if not stream:
                self.gpu.synchronize(0)
        return array._replace(owner=x)

    def get(self, array: DeviceArray) -> np.ndarray:
        x = np.empty(array.shape, array.dtype)
        with self.gpu.current():
            if x.size:
                self.gpu.driver.call("cuMemcpyDtoHAsync_v2", x.ctypes.data, array.pointer, x.nbytes, 0)
            self.gpu.synchronize(0)
        return x

    def free(self) -> None:
        with self.gpu.current():
            for pointer in self._pointers:
                self.gpu.driver.call("cuMemFree_v2", pointer)
        self._pointers.clear()


class Interface:
    """An array as CuPy, torch or PyCUDA show it."""

    def __init__(self, array: DeviceArray, **changes: Any) -> None:
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": "<f4",
            "data": (array.pointer, False),
            "strides": None,
            "version": 3,
            **changes,
        }
