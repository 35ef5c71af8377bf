"""Every codec that runs on a GPU writes and reads there what NumPy writes and reads, composed ones too."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from device_memory import DeviceMemory

from tierline.core.codec.sparse_bitmap import SparseBitmap
from tierline.core.coding import codec_for
from tierline.core.errors import CodecError, CorruptPayload
from tierline.core.types import Payload, TensorSpec
from tierline.kernels import affine, bfloat16, bitplane, dithered, float8_e4m3, radix, sparse_bitmap, topk
from tierline.kernels.cuda import Codec, CudaError, Device, DeviceArray
from tierline.kernels.cuda import launch as launch_module
from tierline.kernels.cuda.launch import Geometry

REAL = pytest.param("real", marks=pytest.mark.gpu)
KERNELS = pytest.mark.parametrize("gpu", ["mock discrete", REAL], indirect=True)
GOLDEN = Path(__file__).parents[1] / "wire" / "golden"

VALUES = ["raw", "bfloat16", "float8_e4m3", "float8_e4m3:row", "dithered", "dithered:255", "dithered:3"]
AFFINE = [
    "affine:range=percentile",
    "affine:4:range=percentile:percent=80",
    "affine:2:range=mse",
    "affine:8:range=mse",
    "affine:3:per=channel:range=mse:rounding=stochastic",
    "affine:5:per=channel:range=percentile:percent=50:rounding=stochastic",
]
SELECT = [
    "sparse_bitmap",
    "sparse_bitmap+affine:4",
    "sparse_bitmap+bfloat16",
    "sparse_bitmap+dithered",
    "sparse_bitmap+float8_e4m3:row",
    "topk",
    "topk:0.3+affine",
    "topk:count=3+dithered:5",
    "topk:0.9+bitplane",
    "sparse_bitmap+topk:0.4+affine:2:range=mse",
    "topk:0.5+topk:0.5+bfloat16",
]
TOKENS = [*VALUES, *AFFINE, *SELECT]
SHAPES = [(1, 1), (1, 8), (3, 7), (5, 1001), (2, 3, 5, 11), (2, 1, 64, 65)]
SEED = 2**53 - 7


@pytest.fixture(autouse=True)
def _numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codecs that results are compared with run on the oracles."""
    modules: tuple[ModuleType, ...] = (affine, bfloat16, bitplane, dithered, float8_e4m3, radix, sparse_bitmap, topk)
    for module in modules:
        monkeypatch.setattr(module, "_compiled", lambda: None)


@pytest.fixture
def features() -> Callable[[tuple[int, ...]], np.ndarray]:
    rng = np.random.default_rng(11)

    def make(shape: tuple[int, ...]) -> np.ndarray:
        """Rows of very different sizes with zeros, ties and outliers in them."""
        x_B = rng.normal(size=shape) * 10.0 ** rng.integers(-2, 3, (shape[0], *(1 for _ in shape[1:])))
        x_B = np.where(rng.random(shape) < 0.4, 0.0, np.where(rng.random(shape) < 0.1, np.rint(x_B), x_B))
        return (x_B * np.where(rng.random(shape) < 0.02, 1e3, 1.0)).astype(np.float32)

    return make


def check(codec: Codec, memory: DeviceMemory, x_B: np.ndarray, seed: int = SEED) -> None:
    """Both ways, against the CPU's codec of the same token."""
    here = codec_for(codec.token)
    payload = here.encode(x_B, seed=seed)
    assert codec.encode(memory.put(x_B), seed=seed) == payload.data
    out = memory.empty(x_B.shape, dtype=str(x_B.dtype))
    codec.decode(payload.data, out, seed=seed)
    expected = here.decode(payload, TensorSpec(str(x_B.dtype), x_B.shape[1:]))
    assert memory.get(out).tobytes() == expected.tobytes()


@KERNELS
@pytest.mark.parametrize("token", TOKENS)
def test_bytes_and_values_are_the_oracles(gpu: Device, memory: DeviceMemory, features: Any, token: str) -> None:
    with closing(Codec(token, gpu)) as codec:
        for shape in SHAPES:
            check(codec, memory, features(shape))


@KERNELS
@pytest.mark.parametrize("token", [*AFFINE, *SELECT, "dithered"])
@pytest.mark.parametrize(("threads", "blocks"), [(32, 1), (96, 50)])
def test_the_launch_does_not_change_bytes(
    gpu: Device,
    memory: DeviceMemory,
    features: Any,
    monkeypatch: pytest.MonkeyPatch,
    token: str,
    threads: int,
    blocks: int,
) -> None:
    monkeypatch.setattr(launch_module, "Geometry", lambda: Geometry(threads, blocks))
    with closing(Codec(token, gpu)) as codec:
        check(codec, memory, features((3, 2, 1203)))
