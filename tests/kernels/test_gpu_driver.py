"""The driver layer: what goes wrong is said, and a caller's context is as it was."""

from __future__ import annotations

import ctypes
from pathlib import Path

import mock_cuda
import pytest

from tierline.kernels import build
from tierline.kernels.cuda import Codec, CudaError, Device, DeviceArray, Driver


def test_a_machine_without_driver_says_so() -> None:
    with pytest.raises(CudaError, match=r"no NVIDIA driver: .*libnone\.so.*run on the CPU"):
        Driver("libnone.so.1")


def test_a_library_that_is_no_driver_says_so() -> None:
    with pytest.raises(CudaError, match="no NVIDIA driver"):
        Driver("libc.so.6")


def test_a_driver_without_devices_says_so(mock_driver: Path) -> None:
    mock_cuda.configure(mock_driver, num_devices=0)
    with pytest.raises(CudaError, match="finds no device"):
        Driver(str(mock_driver))


def test_a_gpu_that_is_not_there(gpu: Device) -> None:
    with pytest.raises(CudaError, match=r"no GPU 99: the driver counts"):
        Device(gpu.driver, 99)


def test_what_a_device_says_of_itself(mock_driver: Path) -> None:
    mock_cuda.configure(mock_driver, integrated=True)
    made = Device(Driver(str(mock_driver)), 0)
    assert (made.arch, made.integrated, made.num_multiprocessors, made.name) == ("sm_87", True, 2, "Mock (a CPU)")


def test_a_failing_call_names_itself_and_the_reason(gpu: Device) -> None:
    with pytest.raises(CudaError, match=r"cuMemAlloc_v2: CUDA_ERROR_INVALID_VALUE \(1\): "), gpu.current():
        gpu.driver.handle("cuMemAlloc_v2", 0)
    with pytest.raises(CudaError, match="cuModuleGetFunction"), gpu.current():
        gpu.function("tl_nothing")


def test_without_a_compiler_the_error_names_gpu_and_remedy(mock_driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(arch: str) -> Path:
        raise build.BuildError(f"no cubin for {arch}")

    mock_cuda.configure(mock_driver)
    monkeypatch.setattr("tierline.kernels.cuda.driver.cubin", refuse)
    made = Device(Driver(str(mock_driver)), 0)
    with pytest.raises(CudaError, match=r"Mock \(a CPU\): no cubin for sm_87"), made.current():
        made.function("tl_affine_codes")


def test_an_array_of_another_gpu_is_refused(mock_driver: Path) -> None:
    mock_cuda.configure(mock_driver, num_devices=2)
    driver = Driver(str(mock_driver))
    here, there = Device(driver, 0), Device(driver, 1)
    with there.current():
        pointer = driver.handle("cuMemAlloc_v2", 64)
    with pytest.raises(CudaError, match="is on GPU 1, this codec runs on GPU 0"):
        Codec("bitplane", here).encode(DeviceArray(pointer, (1, 16)))
    with there.current():
        driver.call("cuMemFree_v2", pointer)


def test_an_array_of_another_context_is_refused(mock_driver: Path) -> None:
    """It would fault, and a fault ends the context for everybody in the process."""
    mock_cuda.configure(mock_driver)
    made = Device(Driver(str(mock_driver)), 0)
    made.driver.call("cuCtxPushCurrent_v2", 101)
    pointer = made.driver.handle("cuMemAlloc_v2", 64)
    with pytest.raises(CudaError, match=r"belongs to a context other .* pycuda\.autoprimaryctx"):
        Codec("bitplane", made).encode(DeviceArray(pointer, (1, 16)))
    made.driver.call("cuMemFree_v2", pointer)
    made.driver.handle("cuCtxPopCurrent_v2")


def test_a_failure_leaves_the_callers_context_as_it_was(gpu: Device) -> None:
    if gpu.name != "Mock (a CPU)":
        pytest.skip("torch may have made a context current here")
    with pytest.raises(CudaError), gpu.current():
        gpu.driver.handle("cuMemAlloc_v2", 0)
    with pytest.raises(CudaError):  # nothing is current: there is nothing to pop
        gpu.driver.handle("cuCtxPopCurrent_v2")


def test_the_mock_sees_lanes_that_do_not_come_together(gpu: Device, mock_driver: Path) -> None:
    """A mock that could not fail would prove nothing: half a warp at a shuffle is an error there."""
    if gpu.name != "Mock (a CPU)":
        pytest.skip("about the mock")
    with gpu.current():
        pointer = gpu.driver.handle("cuMemAlloc_v2", 64)
        address, count = ctypes.c_ulonglong(pointer), ctypes.c_longlong(1)
        gpu.launch("tl_affine_range", (1, 1), 16, 0, address, address, count, count)
        with pytest.raises(CudaError, match="719"):
            gpu.synchronize(0)
        gpu.driver.call("cuMemFree_v2", pointer)


def test_the_mock_sees_writes_outside_an_allocation(gpu: Device) -> None:
    if gpu.name != "Mock (a CPU)":
        pytest.skip("about the mock")
    with gpu.current():
        pointer = gpu.driver.handle("cuMemAlloc_v2", 8)
        gpu.launch("tl_affine_start", (1, 1), 32, 0, ctypes.c_ulonglong(pointer), ctypes.c_longlong(2))
        with pytest.raises(CudaError, match="719"):
            gpu.synchronize(0)
        ctypes.memset(pointer + 8, 0xA5, 8)
        gpu.driver.call("cuMemFree_v2", pointer)
