"""Arrays of other libraries: by `__cuda_array_interface__`, by DLPack, by address."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from device_memory import DeviceMemory, Interface

from tierline.kernels.cuda import Codec, CudaError, Device, DeviceArray, view
from tierline.kernels.cuda.arrays import _Tensor, stream_handle
from tierline.kernels.numpy import affine

_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_capsule.restype = ctypes.py_object


class Exporter:
    """An array as DLPack shows it, from fields of our choice; CUDA by default."""

    def __init__(self, array: DeviceArray, strides: tuple[int, ...] | None = None, **fields: int) -> None:
        num_axes = len(array.shape)
        self.shape = (ctypes.c_int64 * num_axes)(*array.shape)
        self.strides = (ctypes.c_int64 * num_axes)(*strides) if strides else None
        self.tensor = _Tensor(array.pointer, 2, 0, num_axes, 2, 32, 1, self.shape, self.strides, 0)
        for name, value in fields.items():
            setattr(self.tensor, name, value)
        self.asked: list[int] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.tensor.device_type, self.tensor.device_id

    def __dlpack__(self, *, stream: int) -> Any:
        self.asked.append(stream)
        return _capsule(ctypes.addressof(self.tensor), b"dltensor", None)


@pytest.fixture
def codec(gpu: Device) -> Iterator[Codec]:
    with closing(Codec("affine", gpu)) as made:
        yield made


X_B = np.arange(30, dtype=np.float32).reshape(2, 3, 5)


def test_cuda_array_interface(codec: Codec, memory: DeviceMemory) -> None:
    for strides in (None, (60, 20, 4)):
        assert codec.encode(Interface(memory.put(X_B), strides=strides)) == affine.encode(X_B.reshape(2, 15))
    with pytest.raises(CudaError, match="read-only"):
        array = memory.empty((2, 3, 5))
        codec.decode(bytes(46), Interface(array, data=(array.pointer, True)))


def test_dlpack(codec: Codec, memory: DeviceMemory) -> None:
    for strides in (None, (15, 5, 1)):
        exporter = Exporter(memory.put(X_B), strides)
        assert codec.encode(exporter) == affine.encode(X_B.reshape(2, 15))
        assert exporter.asked == [1]  # DLPack's number of the default stream
    shifted = Exporter(memory.put(X_B)._replace(shape=(1, 3, 5)), byte_offset=60)
    assert codec.encode(shifted) == affine.encode(X_B[1:].reshape(1, 15))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (Interface(DeviceArray(64, (2, 3)), typestr="<f2"), "float32"),
        (Interface(DeviceArray(64, (2, 3)), strides=(16, 4)), "not contiguous"),
        (Interface(DeviceArray(64, (2, 3)), strides=(4, 8)), "not contiguous"),
        (Exporter(DeviceArray(64, (2, 3)), type_bits=16), "float32"),
        (Exporter(DeviceArray(64, (2, 3)), type_code=4), "float32"),
        (Exporter(DeviceArray(64, (2, 3)), (1, 2)), "not contiguous"),
        (Exporter(DeviceArray(64, (2, 3)), device_type=1), "not on a CUDA device"),
        (np.zeros((2, 3), np.float32), "not on a CUDA device"),
        ([1.0, 2.0], "list has neither"),
    ],
)
def test_arrays_that_are_refused(array: Any, words: str) -> None:
    with pytest.raises(CudaError, match=words):
        view(array)


def test_streams_of_others() -> None:
    """As torch, PyCUDA, CuPy and cuda-python name their handles."""
    assert stream_handle(5) == 5
    for name in ("cuda_stream", "handle", "ptr"):
        assert stream_handle(SimpleNamespace(**{name: 7})) == 7
    assert stream_handle(SimpleNamespace(__cuda_stream__=lambda: (0, 9))) == 9
    with pytest.raises(CudaError, match="NoneType is no CUDA stream"):
        stream_handle(None)


def test_strides_of_single_or_absent_values_mean_nothing() -> None:
    assert view(Interface(DeviceArray(64, (1, 3)), strides=(999, 4))).shape == (1, 3)
    assert view(Interface(DeviceArray(0, (0, 3)), strides=(7, 9))).shape == (0, 3)


def test_a_torch_tensor_on_the_cpu_is_refused() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(CudaError, match="Tensor is not on a CUDA device"):
        view(torch.zeros(2, 3))


@pytest.mark.gpu
def test_torch_tensors_and_streams() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    host = np.random.default_rng(3).normal(size=(6, 32, 28, 28)).astype(np.float32)
    stream = torch.cuda.Stream()
    with closing(Codec("affine:4")) as four, torch.cuda.stream(stream):
        x_B = torch.from_numpy(host).cuda(non_blocking=True)
        data = four.encode(x_B, stream.cuda_stream)
        assert data == affine.encode(host.reshape(6, -1), 4)
        out = torch.full_like(x_B, torch.nan)
        four.decode(data, out, stream)
        expected = np.empty((6, 32 * 28 * 28), np.float32)
        affine.decode(data, expected, 4)
        assert out.cpu().numpy().tobytes() == expected.tobytes()
        # A slice that is contiguous starts at an address of its own; one that is not is refused.
        assert four.encode(x_B[1:3], stream.cuda_stream) == affine.encode(host[1:3].reshape(2, -1), 4)
        with pytest.raises(CudaError, match="not contiguous"):
            four.encode(x_B[:, :5], stream.cuda_stream)
