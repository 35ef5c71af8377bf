"""Every codec that runs on a GPU writes and reads there what NumPy writes and reads, composed ones too."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_memory import DeviceMemory

from tierline.core.coding import codec_for
from tierline.core.errors import CodecError, CorruptPayload
from tierline.core.types import Payload, TensorSpec
from tierline.kernels import radix
from tierline.kernels.cuda import Codec, CudaError, Device, DeviceArray, affine_range
from tierline.kernels.cuda import launch as launch_module
from tierline.kernels.cuda import topk as topk_stage
from tierline.kernels.cuda.launch import Geometry
from tierline.kernels.cuda.tokens import NAMES, stage_for

pytestmark = pytest.mark.usefixtures("numpy_kernels")
REAL = pytest.param("real", marks=pytest.mark.gpu)
KERNELS = pytest.mark.parametrize("gpu", ["mock discrete", REAL], indirect=True)
GOLDEN = Path(__file__).parents[1] / "wire" / "golden"

VALUES = ["raw", "float16", "bfloat16", "float8_e4m3", "float8_e4m3:row", "dithered", "dithered:255", "dithered:3"]
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
SHAPES = [(1, 1), (1, 8), (3, 7), (5, 1, 1001), (2, 3, 5, 11), (2, 1, 64, 65)]
SEED = 2**53 - 7


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


@KERNELS
@pytest.mark.parametrize("token", [*VALUES, *AFFINE, *SELECT])
def test_addresses_need_no_alignment_beyond_float32(
    gpu: Device, memory: DeviceMemory, features: Any, token: str
) -> None:
    x_B = features((2, 1, 203))
    with closing(Codec(token, gpu)) as codec:
        assert codec.encode(memory.put(x_B, 4), seed=SEED) == codec_for(token).encode(x_B, seed=SEED).data
        out = memory.empty(x_B.shape, 12)
        codec.decode(codec_for(token).encode(x_B, seed=SEED).data, out, seed=SEED)
    assert np.isfinite(memory.get(out)).all()


@KERNELS
@pytest.mark.parametrize("dtype", ["float32", "uint8", "int8", "int32"])
@pytest.mark.parametrize(("levels", "low"), [(3, -1), (2, 0), (100, 3), (1000, -7), (2**31 - 1, -5)])
def test_radix_of_every_dtype(gpu: Device, memory: DeviceMemory, dtype: str, levels: int, low: int) -> None:
    token = codec_for(f"radix:{levels}:low={low}").token
    rng = np.random.default_rng(3)
    with closing(Codec(token, gpu)) as codec:
        for shape in SHAPES:
            x_B = rng.integers(low, low + levels, shape)
            if x_B.astype(dtype).tolist() != x_B.tolist() or not radix.fits(np.dtype(dtype), levels, low):
                with pytest.raises(CudaError, match=r"takes .* on a GPU, got|cast it"):
                    codec.encode(memory.empty(shape, dtype=dtype))
                return
            check(codec, memory, x_B.astype(dtype))
        with pytest.raises(ValueError, match=f"not an integer from {low} to"):
            codec.encode(memory.put(np.full((2, 5), low - 1, np.int32).astype(dtype)))


@KERNELS
@pytest.mark.parametrize("token", [*VALUES, *AFFINE, *SELECT, "bitplane", "affine:4"])
def test_values_without_a_place_are_refused_as_on_a_cpu(gpu: Device, memory: DeviceMemory, token: str) -> None:
    here = codec_for(token)
    with closing(Codec(token, gpu)) as codec:
        for bad in (np.nan, -np.inf, np.inf, 1e38, 2.0**126):
            for count in (1, 12):
                x_B = np.ones((2, 3, 9), np.float32)
                x_B[1].reshape(-1)[3 : 3 + count] = bad
                try:
                    expected = here.encode(x_B, seed=1).data
                except CodecError:
                    with pytest.raises(ValueError, match=r"NaN|infinite"):
                        codec.encode(memory.put(x_B), seed=1)
                else:
                    assert codec.encode(memory.put(x_B), seed=1) == expected
        check(codec, memory, np.ones((2, 3, 9), np.float32))  # no flag sticks


@KERNELS
@pytest.mark.parametrize("token", [*TOKENS, "bitplane", "affine:3", "radix:3", "radix:200"])
def test_bytes_that_no_encoder_writes_are_refused_as_on_a_cpu(
    gpu: Device, memory: DeviceMemory, features: Any, token: str
) -> None:
    """Bytes changed at random, and other lengths: what the CPU refuses the GPU refuses, else values are equal."""
    here, rng, shape = codec_for(token), np.random.default_rng(9), (2, 1, 75)
    spec = TensorSpec("float32", shape[1:])
    x_B = np.rint(np.abs(features(shape))) % 3 if "radix" in token else features(shape)
    data = here.encode(x_B, seed=5)
    num_refused = 0
    with closing(Codec(token, gpu)) as codec:
        out = memory.empty(shape)
        for turn in range(60):
            changed = bytearray(data.data)
            for at in rng.integers(len(changed), size=1 + turn % 3):
                changed[at] = rng.integers(256) if turn % 2 else changed[at] ^ 1 << rng.integers(8)
            if turn % 10 == 9:
                changed = changed[: rng.integers(len(changed))] if turn % 20 == 9 else changed + b"\0"
            payload = Payload(here.token, "float32", shape, bytes(changed), data.params)
            try:
                expected = here.decode(payload, spec)
            except CorruptPayload:
                num_refused += 1
                with pytest.raises(ValueError, match=r"\w"):
                    codec.decode(payload.data, out, seed=5)
            else:
                codec.decode(payload.data, out, seed=5)
                assert memory.get(out).tobytes() == expected.tobytes()
    assert num_refused >= 6


def golden() -> list[Any]:
    cases = []
    for path in sorted(GOLDEN.glob("codec_*.json")):
        stored = json.loads(path.read_text())
        for case in stored["cases"]:
            token = case.get("codec", stored["codec"])
            try:
                known = case["dtype"] in stage_for(token).dtypes
            except ValueError:
                known = False
            if known:
                cases.append(pytest.param(token, case, id=f"{path.stem.removeprefix('codec_')}-{case['name']}"))
    return cases


@KERNELS
@pytest.mark.parametrize(("token", "case"), golden())
def test_golden_bytes(gpu: Device, memory: DeviceMemory, token: str, case: dict[str, Any]) -> None:
    def array(key: str) -> np.ndarray:
        return np.frombuffer(bytes.fromhex(case[key]), case["dtype"]).reshape(case["shape"])

    seed = int(case.get("params", {}).get("seed", 0))
    with closing(Codec(token, gpu)) as codec:
        assert codec.encode(memory.put(array("input")), seed=seed).hex() == case["data"]
        out = memory.empty(tuple(case["shape"]), dtype=case["dtype"])
        codec.decode(bytes.fromhex(case["data"]), out, seed=seed)
    assert memory.get(out).tobytes() == array("output").tobytes()


def test_golden_bytes_are_there_for_every_codec() -> None:
    names = {parameters.values[0].split(":")[0].split("+")[0] for parameters in golden()}
    assert names == set(NAMES)


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (2, 0, 4)], ids=str)
def test_without_values(gpu: Device, token: str, shape: tuple[int, ...]) -> None:
    with closing(Codec(token, gpu)) as codec:
        data = codec.encode(DeviceArray(0, shape))
        assert data == codec_for(token).encode(np.zeros(shape, np.float32)).data
        codec.decode(data, DeviceArray(0, shape))


@KERNELS
def test_rows_beyond_those_taken_at_once(
    gpu: Device, memory: DeviceMemory, features: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(affine_range, "_ROWS_AT_ONCE", 3)
    monkeypatch.setattr(topk_stage, "_ROWS_AT_ONCE", 3)
    x_B = features((8, 99))
    for token in ("affine:2:range=mse", "affine:range=percentile:percent=60", "topk:0.3"):
        with closing(Codec(token, gpu)) as codec:
            check(codec, memory, x_B)


@KERNELS
def test_sums_over_more_than_one_level(gpu: Device, memory: DeviceMemory, features: Any) -> None:
    """64 blocks of 512 values are one node of the tree."""
    for token in ("sparse_bitmap", "topk:0.001"):
        with closing(Codec(token, gpu)) as codec:
            check(codec, memory, features((3, 64 * 512 + 77)))


def test_ties_are_kept_in_order(gpu: Device, memory: DeviceMemory) -> None:
    x_B = np.random.default_rng(2).integers(-2, 3, (4, 3000)).astype(np.float32)
    for share in (0.01, 0.5, 0.9, 1.0):
        with closing(Codec(f"topk:{share}", gpu)) as codec:
            check(codec, memory, x_B)


@pytest.mark.parametrize("token", ["radix:200", "sparse_bitmap+affine:4", "topk+dithered", "affine:2:range=mse"])
def test_warmup_measures_and_leaves_bytes_as_they_were(
    gpu: Device, memory: DeviceMemory, features: Any, cache: Path, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries that add to counts are run many times meanwhile."""
    monkeypatch.setattr(launch_module, "CANDIDATES", (Geometry(32, 1), Geometry(64, 3)))
    x_B = np.zeros((2, 700), np.float32) if "radix" in token else features((2, 700))
    with closing(Codec(token, gpu)) as codec:
        codec.warmup((2, 700))
        with codec._launch.measuring():  # of this data's sizes
            assert codec.encode(memory.put(x_B), seed=4) == codec_for(token).encode(x_B, seed=4).data
        check(codec, memory, x_B)
    (path,) = (cache / "kernels").glob("launch-*.json")
    assert len(json.loads(path.read_text())) >= 2


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("jpeg", "does not run on a GPU"),
        ("affine+zstd", "does not run on a GPU"),
        ("zstd", "does not run on a GPU"),
        ("affine+topk", "does not run on a GPU"),
        ("sparse_bitmap+sparse_bitmap", "as many bytes as follow"),
        ("topk+sparse_bitmap+affine", "as many bytes as follow"),
        ("topk:1.5", "share is 1.5"),
        ("topk:x", "could not convert"),
        ("dithered:4", "an odd number"),
        ("float8_e4m3:column", "one of none, row"),
        ("radix:1", "levels is 1"),
        ("radix:3:low=99999999999", "no dtype holds"),
        ("affine:4:bits=5", "takes no 'bits=5'"),
        ("affine:range=most", "one of minmax"),
    ],
)
def test_tokens_that_do_not_run(token: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        stage_for(token)


def test_other_dtypes_are_refused(gpu: Device, memory: DeviceMemory) -> None:
    with closing(Codec("affine", gpu)) as codec:
        with pytest.raises(CudaError, match="affine takes float32 on a GPU, got int32"):
            codec.encode(memory.empty((2, 3), dtype="int32"))
        with pytest.raises(CudaError, match="got uint8"):
            codec.decode(bytes(22), memory.empty((2, 3), dtype="uint8"))
