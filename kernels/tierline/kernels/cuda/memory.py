"""Where packed bytes meet the CPU: pinned beside device memory, or one mapped buffer where a GPU shares the memory."""

from __future__ import annotations

import ctypes

from tierline.kernels.cuda.driver import Device

_MAPPED = 2  # CU_MEMHOSTALLOC_DEVICEMAP
_FLAG_BYTES = 32
"""Eight int32 at the end say what was bad: one for each stage that a token can have, and to spare."""

_ALIGNED = 256  # as the driver aligns its allocations


class Staging:
    """Bytes that both sides see: `device` is the GPU's address, `host` the CPU's, `flag` the GPU's of the flags.

    On a discrete GPU `fetch` and `send` queue one copy; on an integrated one both addresses are the same memory.
    """

    def __init__(self, gpu: Device) -> None:
        self._gpu = gpu
        self._capacity = 0
        self.host = self.device = self.flag = 0

    def reserve(self, num_bytes: int) -> None:
        """Room for so many bytes and the flags, which lie right behind them, so that one copy takes both."""
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

    def clear_flags(self, stream: int) -> None:
        self._gpu.driver.call("cuMemsetD8Async", self.flag, 0, _FLAG_BYTES, stream)

    def fetch(self, stream: int) -> None:
        """Queue what brings bytes and flags to the CPU."""
        if not self._gpu.integrated:
            num_bytes = self.flag - self.device + _FLAG_BYTES
            self._gpu.driver.call("cuMemcpyDtoHAsync_v2", self.host, self.device, num_bytes, stream)

    def fetch_flags(self, stream: int) -> None:
        """Queue what brings the flags alone."""
        if not self._gpu.integrated:
            at = self.host + self.flag - self.device
            self._gpu.driver.call("cuMemcpyDtoHAsync_v2", at, self.flag, _FLAG_BYTES, stream)

    def send(self, data: bytes, stream: int) -> None:
        """Copy bytes into place and queue what brings them to the GPU."""
        ctypes.memmove(self.host, data, len(data))
        self.push(len(data), stream)

    def push(self, num_bytes: int, stream: int) -> None:
        """Queue what brings the first bytes of `host` to the GPU."""
        if not self._gpu.integrated:
            self._gpu.driver.call("cuMemcpyHtoDAsync_v2", self.device, self.host, num_bytes, stream)

    def flags(self) -> list[int]:
        """Once the stream is synchronised."""
        return list((ctypes.c_int * (_FLAG_BYTES // 4)).from_address(self.host + self.flag - self.device))

    def close(self) -> None:
        """Give the memory back; the GPU must be done with it."""
        if self.device and not self._gpu.integrated:
            self._gpu.driver.call("cuMemFree_v2", self.device)
        if self.host:
            self._gpu.driver.call("cuMemFreeHost", self.host)
        self.host = self.device = self.flag = self._capacity = 0


class Arena:
    """Device memory of one call at a time. What a call lacks is added; the next one finds as much in one piece."""

    def __init__(self, gpu: Device) -> None:
        self._gpu = gpu
        self._pieces: list[tuple[int, int]] = []
        self._used = 0

    def begin(self) -> None:
        """Everything handed out before is free again."""
        if len(self._pieces) > 1:
            num_bytes = sum(size for _, size in self._pieces)
            self.close()
            self._add(num_bytes)
        self._used = 0

    def take(self, num_bytes: int) -> int:
        """Address of so many bytes, aligned to 256."""
        num_bytes = max(-(-num_bytes // _ALIGNED), 1) * _ALIGNED
        if not self._pieces or self._used + num_bytes > self._pieces[-1][1]:
            self._add(num_bytes)
        self._used += num_bytes
        return self._pieces[-1][0] + self._used - num_bytes

    def close(self) -> None:
        """Give the memory back."""
        for pointer, _ in self._pieces:
            self._gpu.driver.call("cuMemFree_v2", pointer)
        self._pieces.clear()

    def _add(self, num_bytes: int) -> None:
        self._pieces.append((self._gpu.driver.handle("cuMemAlloc_v2", num_bytes), num_bytes))
        self._used = 0
