"""Arrays of others on a GPU: torch, CuPy, PyCUDA, or an address that TensorRT wrote to."""

from __future__ import annotations

import ctypes
import math
from typing import Any, NamedTuple

from tierline.kernels.cuda.driver import CudaError

_CUDA_KINDS = (2, 3, 13)  # DLPack's kDLCUDA, kDLCUDAHost, kDLCUDAManaged
_DTYPES = {"<f4": "float32", "|u1": "uint8", "|i1": "int8", "<i4": "int32"}
_DLPACK_DTYPES = {(2, 32): "float32", (1, 8): "uint8", (0, 8): "int8", (0, 32): "int32"}  # by type code and bits
_ITEM_BYTES = {"float32": 4, "uint8": 1, "int8": 1, "int32": 4}

_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
_capsule_pointer.restype = ctypes.c_void_p


class DeviceArray(NamedTuple):
    """A contiguous batch at an address. `owner` keeps the memory alive; `stream` is whose work fills it.

    `dtype` is float32, uint8, int8 or int32.
    """

    pointer: int
    shape: tuple[int, ...]
    owner: object = None
    stream: int | None = None
    writable: bool = True
    dtype: str = "float32"

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def item_bytes(self) -> int:
        """Of one value."""
        return _ITEM_BYTES[self.dtype]


class _Tensor(ctypes.Structure):
    """DLPack's DLTensor, the first member of what a capsule points to."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("type_code", ctypes.c_uint8),
        ("type_bits", ctypes.c_uint8),
        ("type_lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def stream_handle(stream: Any) -> int:
    """The integer behind a stream of torch, PyCUDA, CuPy or cuda-python; an integer is one already.

    Raises CudaError for anything else.
    """
    if isinstance(stream, int):
        return stream
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    for name in ("cuda_stream", "handle", "ptr"):
        if isinstance(handle := getattr(stream, name, None), int):
            return handle
    raise CudaError(f"{type(stream).__name__} is no CUDA stream; give the integer handle of one")


def view(x: Any, stream: int = 0) -> DeviceArray:
    """Of anything with `__cuda_array_interface__` or `__dlpack__`, or of a DeviceArray. Copies nothing.

    Raises CudaError for another dtype, for gaps between values, and for memory that is not on a GPU.
    """
    if isinstance(x, DeviceArray):
        return x
    # torch raises from this attribute for a CPU tensor or one that needs gradients; its words are the better ones.
    interface = getattr(x, "__cuda_array_interface__", None)
    if interface is not None:
        return _from_interface(interface, x)
    if hasattr(x, "__dlpack__"):
        return _from_dlpack(x, stream)
    raise CudaError(f"{type(x).__name__} has neither __cuda_array_interface__ nor __dlpack__; wrap it in DeviceArray")


def _from_interface(interface: dict[str, Any], owner: object) -> DeviceArray:
    shape = tuple(interface["shape"])
    dtype = _DTYPES.get(interface["typestr"])
    if dtype is None:
        raise CudaError(f"takes {', '.join(_ITEM_BYTES)}, got {interface['typestr']}; cast it first")
    strides, size = interface.get("strides"), _ITEM_BYTES[dtype]
    _check_contiguous(shape, None if strides is None else tuple(step // size for step in strides))
    pointer, read_only = interface["data"]
    return DeviceArray(pointer or 0, shape, owner, interface.get("stream"), not read_only, dtype)


def _from_dlpack(x: Any, stream: int) -> DeviceArray:
    kind, _ = x.__dlpack_device__()
    if kind not in _CUDA_KINDS:
        raise CudaError(f"{type(x).__name__} is not on a CUDA device (DLPack device type {kind})")
    # The producer makes our stream wait for its own work; DLPack calls the default stream 1.
    capsule = x.__dlpack__(stream=stream or 1)
    tensor = _Tensor.from_address(_capsule_pointer(capsule, b"dltensor"))
    dtype = _DLPACK_DTYPES.get((tensor.type_code, tensor.type_bits))
    if dtype is None or tensor.type_lanes != 1:
        kind, bits = tensor.type_code, tensor.type_bits
        raise CudaError(f"takes {', '.join(_ITEM_BYTES)}, got DLPack type code {kind} of {bits} bits; cast it first")
    shape = tuple(tensor.shape[: tensor.ndim])
    _check_contiguous(shape, tuple(tensor.strides[: tensor.ndim]) if tensor.strides else None)
    return DeviceArray((tensor.data or 0) + tensor.byte_offset, shape, (capsule, x), dtype=dtype)


def _check_contiguous(shape: tuple[int, ...], strides: tuple[int, ...] | None) -> None:
    """`strides` in values. Raises CudaError unless the last axis varies fastest and nothing lies between values."""
    expected = 1
    for length, step in zip(reversed(shape), reversed(strides or ()), strict=False):
        if length > 1 and step != expected and 0 not in shape:
            raise CudaError(f"values of shape {list(shape)} are not contiguous (strides {strides}); copy it first")
        expected *= length
