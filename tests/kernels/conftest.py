"""GPUs that kernel tests run on: mocks of a discrete and of an integrated one, and a real one where it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mock_cuda
import pytest
from device_memory import DeviceMemory

from tierline.kernels import (
    affine,
    bfloat16,
    bitplane,
    cabac,
    dithered,
    float8_e4m3,
    float16,
    radix,
    sparse_bitmap,
    topk,
)
from tierline.kernels.cuda import CudaError, Device, Driver, device

REAL = pytest.param("real", marks=pytest.mark.gpu)


@pytest.fixture(scope="session")
def mock_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mock's shared library."""
    if not mock_cuda.have_compiler():
        pytest.skip("no C++ compiler to make the mock of a driver")
    return mock_cuda.compile_driver(tmp_path_factory.mktemp("mock_cuda"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for this test alone."""
    monkeypatch.setenv("TIERLINE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def numpy_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codecs of the CPU run on the oracles."""
    halves = (bfloat16.half, float16.half)
    for kernel in (*halves, affine, bitplane, cabac, dithered, float8_e4m3, radix, sparse_bitmap, topk):
        monkeypatch.setattr(kernel, "_compiled", lambda: None)


@pytest.fixture(params=["mock discrete", "mock integrated", REAL])
def gpu(request: pytest.FixtureRequest) -> Iterator[Device]:
    if request.param == "real":
        try:
            yield device()
        except CudaError as error:
            pytest.skip(str(error))
        return
    request.getfixturevalue("cache")
    path = request.getfixturevalue("mock_driver")
    monkeypatch = request.getfixturevalue("monkeypatch")
    image = request.getfixturevalue("tmp_path") / "sm_87-of-the-mock.cubin"
    image.write_bytes(b"\x7fELF")
    monkeypatch.setattr("tierline.kernels.cuda.driver.cubin", lambda arch: image)
    mock_cuda.configure(path, integrated="integrated" in request.param)
    before = mock_cuda.num_allocations(path)
    yield Device(Driver(str(path)), 0)
    assert mock_cuda.num_allocations(path) == before, "the test left memory of the GPU behind"


@pytest.fixture
def memory(gpu: Device) -> Iterator[DeviceMemory]:
    made = DeviceMemory(gpu)
    yield made
    made.free()
