"""Where packed bytes meet the CPU: pinned beside device memory, or one mapped buffer where a GPU shares the memory."""

from __future__ import annotations

import ctypes

from tierline.kernels.cuda.driver import Device

_MAPPED = 2  # CU_MEMHOSTALLOC_DEVICEMAP
_FLAG_BYTES = 16  # an int32 at the end says what was bad; 16 keeps what comes before it aligned


class Staging:
    """Bytes that both sides see: `device` is the GPU's address of them, `host` the CPU's, `flag` the GPU's of the flag.

    On a discrete GPU `fetch` and `send` queue one copy; on an integrated one both addresses are the same memory.
    """

    def __init__(self, gpu: Device) -> None:
        self._gpu = gpu
        self._capacity = 0
        self.host = self.device = self.flag = 0

    def reserve(self, num_bytes: int) -> None:
        """Room for so many bytes and the flag, which lies right behind them, so that one copy takes both."""
        start = -(-num_bytes // _FLAG_BYTES) * _FLAG_BYTES
        if start + _FLAG_BYTES > self._capacity:
            self.close()
            driver, capacity = self._gpu.driver, start + _FLAG_BYTES
            self.host = driver.handle("cuMemHostAlloc", capacity, _MAPPED if self._gpu.integrated else 0)
            if self._gpu.integrated:
                self.device = driver.handle("cuMemHostGetDevicePointer_v2", self.host, 0)
            else:
                self.device = driver.handle("cuMemAlloc_v2", capacity)
            self._capacity = capacity
        self.flag = self.device + start

    def clear_flag(self, stream: int) -> None:
        self._gpu.driver.call("cuMemsetD8Async", self.flag, 0, 4, stream)

    def fetch(self, stream: int) -> None:
        """Queue what brings bytes and flag to the CPU."""
        if not self._gpu.integrated:
            num_bytes = self.flag - self.device + 4
            self._gpu.driver.call("cuMemcpyDtoHAsync_v2", self.host, self.device, num_bytes, stream)

    def fetch_flag(self, stream: int) -> None:
        """Queue what brings the flag alone."""
        if not self._gpu.integrated:
            at = self.host + self.flag - self.device
            self._gpu.driver.call("cuMemcpyDtoHAsync_v2", at, self.flag, 4, stream)

    def send(self, data: bytes, stream: int) -> None:
        """Copy bytes into place and queue what brings them to the GPU."""
        ctypes.memmove(self.host, data, len(data))
        self.push(len(data), stream)

    def push(self, num_bytes: int, stream: int) -> None:
        """Queue what brings the first bytes of `host` to the GPU."""
        if not self._gpu.integrated:
            self._gpu.driver.call("cuMemcpyHtoDAsync_v2", self.device, self.host, num_bytes, stream)

    def flag_value(self) -> int:
        """The flag, once the stream is synchronised."""
        return ctypes.c_int.from_address(self.host + self.flag - self.device).value

    def close(self) -> None:
        """Give the memory back; the GPU must be done with it."""
        if self.device and not self._gpu.integrated:
            self._gpu.driver.call("cuMemFree_v2", self.device)
        if self.host:
            self._gpu.driver.call("cuMemFreeHost", self.host)
        self.host = self.device = self.flag = self._capacity = 0


class Scratch:
    """Device memory that grows when more is asked for."""

    def __init__(self, gpu: Device) -> None:
        self._gpu = gpu
        self._capacity = 0
        self.device = 0

    def reserve(self, num_bytes: int) -> int:
        """Address of at least so many bytes, 0 for none."""
        if num_bytes > self._capacity:
            self.close()
            self.device = self._gpu.driver.handle("cuMemAlloc_v2", num_bytes)
            self._capacity = num_bytes
        return self.device

    def close(self) -> None:
        if self.device:
            self._gpu.driver.call("cuMemFree_v2", self.device)
        self.device = self._capacity = 0
