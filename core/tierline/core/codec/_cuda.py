"""A token's codec for arrays on an NVIDIA GPU: values are coded there, byte stages pack what reaches the host."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from tierline.core.codec._check import check_head
from tierline.core.coding import codec_around, codec_for, stage_names
from tierline.core.errors import CodecError, CorruptPayload, ShapeMismatch
from tierline.core.types import Array, Payload, TensorSpec
from tierline.kernels import cuda

_SEEDS = 2**53


class CudaCodec:
    """Writes and reads the Payloads of `codec_for(token)`. Calls from several threads take turns.

    Arrays are what `tierline.kernels.cuda.Codec` takes, streams too; `gpu` is a number or a Device.
    Raises UnknownCodec for tokens that nobody knows, CodecError for those whose values no GPU codes, CudaError where
    there is no GPU.
    """

    def __init__(self, token: str, gpu: cuda.Device | int = 0) -> None:
        made: list[_OnGpu] = []

        def on_gpu(values: str) -> Any:
            made.append(_OnGpu(values, gpu))
            return made[0]

        self._codec = codec_around(token, on_gpu)
        self._kernels = made[0].kernels
        self.token, self.dtypes = self._codec.token, self._codec.dtypes

    def encode(self, x_B: Any, stream: Any = 0, *, seed: int = 0) -> Payload:
        """Code a batch that `stream` has filled. Raises CodecError for values without a place, CudaError."""
        return self._codec.encode(_batch(x_B, stream), seed=seed)

    def decode(self, payload: Payload, limit: TensorSpec, out_B: Any, stream: Any = 0, *, max_rows: int = 4096) -> None:
        """Decode into an array of the payload's shape, which `limit` must allow; returns when values are there.

        Raises CorruptPayload, ShapeMismatch for an array that does not fit, CudaError.
        """
        self._codec.decode(payload, limit, max_rows=max_rows, out=_batch(out_B, stream))

    def warmup(self, shape: tuple[int, ...]) -> None:
        """Compile, load, take memory and measure launches for batches of this shape."""
        self._kernels.warmup(shape)

    def close(self) -> None:
        """Give back what is held on the GPU."""
        self._kernels.close()


class _Batch(NamedTuple):
    """An array on a GPU where codecs of the host have one of NumPy."""

    array: cuda.DeviceArray
    stream: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def size(self) -> int:
        return self.array.size


def _batch(array: Any, stream: Any) -> Any:
    handle = cuda.stream_handle(stream)
    return _Batch(cuda.view(array, handle), handle)


class _OnGpu:
    """All stages but those that pack bytes, as the codec that these wrap."""

    role = "values"

    def __init__(self, token: str, gpu: cuda.Device | int) -> None:
        host = codec_for(token)
        try:
            self.kernels = cuda.Codec(host.token, gpu)
        except ValueError as error:
            raise CodecError(str(error)) from None
        self.token = host.token
        self.dtypes = tuple(name for name in host.dtypes if name in self.kernels.dtypes)
        self.max_error, self.size_bounds = host.max_error, host.size_bounds
        self.code_rows = getattr(host, "code_rows", None)
        self._has_seed = "dithered" in stage_names(host.token)

    def encode(self, x_B: Any, *, seed: int = 0) -> Payload:
        array, stream = x_B
        if self._has_seed and (not 0 <= seed < _SEEDS or seed != int(seed)):
            raise CodecError(f"{self.token}: seed is {seed}, an integer from 0 to 2^53 - 1")
        try:
            data = self.kernels.encode(array, stream, seed=seed)
        except ValueError as error:
            raise CodecError(f"{self.token}: {error}") from None
        params = {"seed": float(seed)} if self._has_seed else {}
        return Payload(self.token, array.dtype, array.shape, data, params)

    def decode(self, payload: Payload, limit: TensorSpec, *, max_rows: int = 4096, out: Any = None) -> Array:
        num_rows = check_head(payload, self.token, self.dtypes, limit, max_rows)
        array, stream = out
        if (array.dtype, tuple(array.shape)) != (limit.dtype, (num_rows, *limit.shape)):
            raise ShapeMismatch(
                f"out: expected {limit.dtype}{[num_rows, *limit.shape]}, got {array.dtype}{list(array.shape)}"
            )
        seed = payload.params.get("seed", math.nan) if self._has_seed else 0.0
        if not 0 <= seed < _SEEDS or seed != int(seed):
            raise CorruptPayload(f"{self.token}: parameter seed is {seed}, no integer from 0 to 2^53 - 1")
        try:
            self.kernels.decode(payload.data, array, stream, seed=int(seed))
        except ValueError as error:
            raise CorruptPayload(f"{self.token}: {error}") from None
        values: Array = out
        return values
