"""Tokens with byte stages: values are coded on the GPU, packed on the host, and Payloads are the CPU's."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from device_memory import DeviceMemory, Interface

from tierline.core.coding import codec_for, gpu_codec
from tierline.core.errors import CodecError, CorruptPayload, ShapeMismatch, UnknownCodec
from tierline.core.types import Payload, TensorSpec
from tierline.kernels.cuda import Device

pytestmark = pytest.mark.usefixtures("numpy_kernels")
REAL = pytest.param("real", marks=pytest.mark.gpu)
KERNELS = pytest.mark.parametrize("gpu", ["mock discrete", REAL], indirect=True)
TOKENS = [
    "affine:4+zstd",
    "affine:2:range=mse+cabac",
    "bitplane+cabac",
    "sparse_bitmap+affine:4+zstd:7",
    "topk:0.1+dithered:5+zstd",
    "dithered",
    "affine:3:rounding=stochastic",
]
X_B = np.maximum(np.random.default_rng(1).normal(size=(3, 4, 9, 7)), 0).astype(np.float32)
LIMIT = TensorSpec("float32", X_B.shape[1:])


@pytest.mark.parametrize("token", TOKENS)
def test_payloads_are_the_cpus(gpu: Device, memory: DeviceMemory, token: str) -> None:
    here = codec_for(token)
    with closing(gpu_codec(token, gpu)) as codec:
        assert (codec.token, codec.dtypes) == (here.token, here.dtypes)
        payload = codec.encode(Interface(memory.put(X_B)), seed=77)
        assert payload == here.encode(X_B, seed=77)
        out = memory.empty(X_B.shape)
        codec.decode(payload, LIMIT, out)
        assert memory.get(out).tobytes() == here.decode(payload, LIMIT).tobytes()


@KERNELS
def test_what_is_refused(gpu: Device, memory: DeviceMemory) -> None:
    out = memory.empty(X_B.shape)
    with closing(gpu_codec("affine:4+zstd", gpu)) as codec:
        with pytest.raises(CodecError, match=r"affine:4: a value is NaN"):
            codec.encode(memory.put(np.full((1, 3), np.nan, np.float32)))
        payload = codec.encode(memory.put(X_B))
        with pytest.raises(CorruptPayload):
            codec.decode(Payload(payload.codec, "float32", X_B.shape, payload.data[:-3]), LIMIT, out)
        with pytest.raises(ShapeMismatch, match=r"out: expected float32\[3, 4, 9, 7\], got float32\[3, 4\]"):
            codec.decode(payload, LIMIT, memory.empty((3, 4)))
    with closing(gpu_codec("affine", gpu)) as codec, pytest.raises(CorruptPayload, match="header"):
        codec.decode(
            Payload("affine", "float32", (1, 2), b"\xff" * 10), TensorSpec("float32", (2,)), out._replace(shape=(1, 2))
        )
    with closing(gpu_codec("dithered", gpu)) as codec:
        with pytest.raises(CodecError, match="seed is -1"):
            codec.encode(memory.put(X_B), seed=-1)
        payload = codec.encode(memory.put(X_B))
        for seed in (np.nan, 0.5, 2.0**53, -1.0):
            with pytest.raises(CorruptPayload, match="parameter seed"):
                codec.decode(Payload("dithered", "float32", X_B.shape, payload.data, {"seed": seed}), LIMIT, out)


def test_tokens_that_no_gpu_codes(gpu: Device) -> None:
    with pytest.raises(CodecError, match="'webp' does not run on a GPU"):
        gpu_codec("webp+zstd", gpu)
    with pytest.raises(UnknownCodec, match="no such codec"):
        gpu_codec("affin", gpu)


def test_dtypes_are_those_that_the_gpu_takes(gpu: Device) -> None:
    for token in ("raw", "raw+zstd"):
        with closing(gpu_codec(token, gpu)) as codec:
            assert codec.dtypes == ("float32",)
