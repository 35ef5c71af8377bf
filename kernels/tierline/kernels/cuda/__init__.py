"""Codecs on an NVIDIA GPU: arrays that are there already, in; packed bytes, equal to the CPU's, out.

`Codec("affine:4").encode(features, stream)` takes torch, CuPy and PyCUDA arrays, anything with DLPack, and addresses
(`DeviceArray`). Nothing here imports a framework; the driver is met at the first `device()` or `Codec`.
"""

from tierline.kernels.cuda.arrays import DeviceArray, stream_handle, view
from tierline.kernels.cuda.codec import Codec
from tierline.kernels.cuda.driver import CudaError, Device, Driver, device

__all__ = ["Codec", "CudaError", "Device", "DeviceArray", "Driver", "device", "stream_handle", "view"]
