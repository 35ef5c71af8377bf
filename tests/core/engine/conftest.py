"""GPUs that the runner's tests see: mocks of a discrete and of an integrated one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fake_tensorrt
import mock_cuda
import pytest

from tierline.kernels.cuda import Device, Driver


@pytest.fixture(scope="session")
def mock_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not mock_cuda.have_compiler():
        pytest.skip("no C++ compiler to make the mock of a driver")
    return mock_cuda.compile_driver(tmp_path_factory.mktemp("mock_cuda"))


@pytest.fixture(params=["discrete", "integrated"])
def gpu(request: pytest.FixtureRequest, mock_driver: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    mock_cuda.configure(mock_driver, integrated=request.param == "integrated")
    for key, value in {"driver": mock_driver, "num_executed": 0, "num_queued": 0}.items():
        monkeypatch.setattr(fake_tensorrt.State, key, value, raising=False)
    before = mock_cuda.num_allocations(mock_driver)
    yield Device(Driver(str(mock_driver)), 0)
    assert mock_cuda.num_allocations(mock_driver) == before, "the test left memory of the GPU behind"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for this test alone."""
    monkeypatch.setenv("TIERLINE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"
