"""Bytes of a GPU are the oracle's bytes: on mocks of one that run the same source, and with `-m gpu` on a real one."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from device_memory import DeviceMemory, Interface

from tierline.kernels.cuda import Codec, CudaError, Device, DeviceArray
from tierline.kernels.cuda import launch as launch_module
from tierline.kernels.cuda.launch import Geometry
from tierline.kernels.numpy import affine, bitplane, philox

REAL = pytest.param("real", marks=pytest.mark.gpu)
RNG = np.random.default_rng(7)
TOKENS = [*(f"affine:{bits}" for bits in range(1, 9)), "bitplane"]
# The two mocks differ in where bytes are staged only, so what is about the kernels runs on one of them.
KERNELS = pytest.mark.parametrize("gpu", ["mock discrete", REAL], indirect=True)
SHAPES = [(1, 1), (1, 8), (3, 7), (2, 64), (5, 1001), (70, 33), (1, 4096), (2, 3, 5, 5)]


def oracle_bytes(token: str, x_B: np.ndarray) -> bytes:
    x_BV = x_B.reshape(len(x_B), int(np.prod(x_B.shape[1:])))
    return bitplane.encode(x_BV) if token == "bitplane" else affine.encode(x_BV, int(token[7:]))


def oracle_values(token: str, data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    x_B = np.empty(shape, np.float32)
    x_BV = x_B.reshape(shape[0], int(np.prod(shape[1:])))
    if token == "bitplane":
        bitplane.decode(data, x_BV)
    else:
        affine.decode(data, x_BV, int(token[7:]))
    return x_B


def features(shape: tuple[int, ...]) -> np.ndarray:
    scale_B = 10.0 ** RNG.integers(-30, 30, (shape[0], *(1 for _ in shape[1:])))
    return (RNG.normal(size=shape) * scale_B).astype(np.float32)


@pytest.fixture(params=TOKENS)
def codec(request: pytest.FixtureRequest, gpu: Device) -> Iterator[Codec]:
    with closing(Codec(request.param, gpu)) as made:
        yield made


@pytest.fixture
def affine8(gpu: Device) -> Iterator[Codec]:
    with closing(Codec("affine", gpu)) as made:
        yield made


@KERNELS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bytes_and_values_are_the_oracles(codec: Codec, memory: DeviceMemory, shape: tuple[int, ...]) -> None:
    x_B = features(shape)
    expected = oracle_bytes(codec.token, x_B)
    assert codec.encode(memory.put(x_B)) == expected
    out = memory.empty(shape)
    codec.decode(expected, out)
    assert memory.get(out).tobytes() == oracle_values(codec.token, expected, shape).tobytes()


@KERNELS
@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 7, 5), (2, 4, 64), (1, 2, 0)], ids=str)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_options_of_affine(gpu: Device, memory: DeviceMemory, per: str, rounding: str, shape: tuple[int, ...]) -> None:
    x_B, seed = features(shape), 2**63 + 5
    num_channels = shape[1] if per == "channel" else 1
    x_RV = x_B.reshape(shape[0] * num_channels, x_B.size // (shape[0] * num_channels))
    expected = affine.encode(x_RV, 3, num_streams=num_channels if rounding == "stochastic" else 0, seed=seed)
    with closing(Codec(f"affine:3:per={per}:rounding={rounding}", gpu)) as codec:
        assert codec.encode(memory.put(x_B), seed=seed) == expected
        out = memory.empty(shape)
        codec.decode(expected, out)
    decoded_RV = np.empty_like(x_RV)
    affine.decode(expected, decoded_RV, 3)
    assert memory.get(out).tobytes() == decoded_RV.tobytes()


def test_random_words_are_the_oracles(gpu: Device, memory: DeviceMemory) -> None:
    words, key, upper = memory.empty((1, 1003)), 2**64 - 3, 2**40 + 1
    arguments = (ctypes.c_ulonglong(words.pointer), ctypes.c_longlong(1003), *map(ctypes.c_ulonglong, (key, upper)))
    with gpu.current():
        gpu.launch("tl_philox_words", (2, 1), 64, 0, *arguments)
    assert memory.get(words).tobytes() == philox.words(1003, key, upper).tobytes()


@KERNELS
@pytest.mark.parametrize(("threads", "blocks"), [(32, 1), (96, 50), (1024, 2)])
def test_the_launch_does_not_change_bytes(
    codec: Codec, memory: DeviceMemory, monkeypatch: pytest.MonkeyPatch, threads: int, blocks: int
) -> None:
    monkeypatch.setattr(launch_module, "Geometry", lambda: Geometry(threads, blocks))
    x_B = features((3, 2507))
    expected = oracle_bytes(codec.token, x_B)
    assert codec.encode(memory.put(x_B)) == expected
    out = memory.empty(x_B.shape)
    codec.decode(expected, out)
    assert memory.get(out).tobytes() == oracle_values(codec.token, expected, x_B.shape).tobytes()


@KERNELS
@pytest.mark.parametrize("offset_bytes", [4, 8, 12])
def test_addresses_need_no_alignment_beyond_float32(codec: Codec, memory: DeviceMemory, offset_bytes: int) -> None:
    x_B = features((2, 203))
    assert codec.encode(memory.put(x_B, offset_bytes)) == oracle_bytes(codec.token, x_B)
    out = memory.empty(x_B.shape, offset_bytes)
    codec.decode(oracle_bytes(codec.token, x_B), out)
    assert np.isfinite(memory.get(out)).all()


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)], ids=str)
def test_without_values(codec: Codec, memory: DeviceMemory, shape: tuple[int, int]) -> None:
    data = codec.encode(DeviceArray(0, shape))
    assert data == oracle_bytes(codec.token, np.zeros(shape, np.float32))
    codec.decode(data, DeviceArray(0, shape))


def test_a_codec_serves_growing_and_shrinking_batches(codec: Codec, memory: DeviceMemory) -> None:
    for num_rows in (1, 9, 2):
        x_B = features((num_rows, 40 * num_rows + 3))
        assert bytes(codec.encode_view(memory.put(x_B))) == oracle_bytes(codec.token, x_B)


@KERNELS
@pytest.mark.parametrize("at", [0, 3, 8, 20])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_values_without_a_place_are_refused(affine8: Codec, memory: DeviceMemory, at: int, bad: float) -> None:
    x_B = np.ones((2, 21), np.float32)
    x_B[1, at] = bad
    with pytest.raises(ValueError, match="NaN, infinite"):
        affine8.encode(memory.put(x_B))
    assert affine8.encode(memory.put(np.ones((2, 21), np.float32)))  # the flag does not stick
    if np.isnan(bad):
        with closing(Codec("bitplane", memory.gpu)) as sign, pytest.raises(ValueError, match="no sign"):
            sign.encode(memory.put(x_B))


def test_bytes_that_no_encoder_writes_are_refused(gpu: Device, memory: DeviceMemory, affine8: Codec) -> None:
    out = memory.empty((1, 3))
    with pytest.raises(ValueError, match="header"):
        affine8.decode(np.array([0, np.nan], np.float32).tobytes() + b"\1\2\3", out)
    with closing(Codec("affine:4", gpu)) as four, pytest.raises(ValueError, match="padding"):
        four.decode(np.array([0, 1], np.float32).tobytes() + b"\x00\xf0", out)
    with closing(Codec("bitplane", gpu)) as sign, pytest.raises(ValueError, match="padding"):
        sign.decode(b"\x01", out)
    with pytest.raises(ValueError, match=r"12 bytes of data, shape \[1, 3\] needs 11"):
        affine8.decode(bytes(12), out)


def test_work_follows_the_callers_stream(gpu: Device, memory: DeviceMemory, affine8: Codec) -> None:
    with gpu.current():
        stream, other = gpu.driver.handle("cuStreamCreate", 1), gpu.driver.handle("cuStreamCreate", 1)
    x_B = features((4, 501))
    assert affine8.encode(memory.put(x_B, stream=stream), stream) == oracle_bytes("affine:8", x_B)
    # The array says who fills it, so that a codec on another stream waits for that.
    filled = memory.put(x_B, stream=other)
    assert affine8.encode(Interface(filled, stream=other), stream) == oracle_bytes("affine:8", x_B)
    with gpu.current():
        for handle in (stream, other):
            gpu.driver.call("cuStreamDestroy_v2", handle)


def test_a_refused_payload_leaves_nothing_queued(gpu: Device, memory: DeviceMemory) -> None:
    x_B, out = np.abs(features((4, 256))) + 1, memory.empty((4, 256))
    with gpu.current():
        streams = one, other = [gpu.driver.handle("cuStreamCreate", 1) for _ in range(2)]
    with closing(Codec("sparse_bitmap+affine:8", gpu)) as codec:
        x = memory.put(x_B)
        whole = codec.encode(x, other)
        for _ in range(2):  # launches are measured, buffers have their size
            codec.decode(whole, out, other)
            codec.encode(x, other)
        with pytest.raises(ValueError, match="bytes of data"):
            codec.decode(whole[:200], out, one)
        view = codec.encode_view(x, other)
        with gpu.current():
            gpu.synchronize(one)
        assert bytes(view) == whole
        view.release()
    with gpu.current():
        for handle in streams:
            gpu.driver.call("cuStreamDestroy_v2", handle)


def test_warmup_measures_once_and_later_processes_read_it(
    gpu: Device, memory: DeviceMemory, cache: Path, affine8: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    affine8.warmup((2, 500))
    (path,) = (cache / "kernels").glob("launch-sm_*.json")
    stored = json.loads(path.read_text())
    assert {key.split()[0] for key in stored} >= {"tl_affine_range", "tl_affine_codes", "tl_affine_decode"}
    assert all(tuple(value) in launch_module.CANDIDATES for value in stored.values())
    path.write_text(json.dumps({key: [64, 3] for key in stored}))
    grids = []
    monkeypatch.setattr(gpu, "launch", lambda entry, grid, threads, *rest: grids.append((entry, grid, threads)))
    with closing(Codec("affine", gpu)) as later:
        later.queue(memory.put(np.zeros((2, 500), np.float32)))
        later.warmup((2, 500))
    assert ("tl_affine_codes", (1, 2), 64) in grids
    assert len(grids) == 4 + 4 + 1  # encode, and a warm-up that measures nothing


@pytest.mark.parametrize("content", ['{"x": 3}', '{"x": [40, 2]}', '{"x": [64]', "[]"])
def test_a_broken_file_of_launches_is_measured_anew(cache: Path, gpu: Device, affine8: Codec, content: str) -> None:
    affine8.warmup((1, 9))
    (path,) = (cache / "kernels").glob("launch-*.json")
    path.write_text(content)
    with closing(Codec("affine", gpu)) as again:
        again.warmup((1, 9))
    assert "x" not in json.loads(path.read_text())


def test_what_a_gpu_cannot_read_is_refused_before_it_tries(affine8: Codec, memory: DeviceMemory) -> None:
    here = np.zeros((2, 3), np.float32)
    with pytest.raises(CudaError, match="no memory that CUDA knows"):
        affine8.encode(DeviceArray(here.ctypes.data, here.shape, here))
    with pytest.raises(CudaError, match="not aligned"):
        affine8.encode(memory.empty((2, 3), 2))
    with pytest.raises(CudaError, match="read-only"):
        affine8.decode(bytes(22), memory.empty((2, 3))._replace(writable=False))
    with pytest.raises(CudaError, match="scalar"):
        affine8.encode(memory.empty(()))
    with pytest.raises(ValueError, match="nothing to warm up"):
        affine8.warmup((0, 5))


REFUSED = ["affine:9", "affine:0", "affine:x", "affine:", "affine:88", "affine:per=row", "affine:range=most"]


@pytest.mark.parametrize("token", [*REFUSED, "webp", "bitplane:1"])
def test_tokens_that_do_not_run_on_a_gpu(token: str) -> None:
    with pytest.raises(ValueError, match=r"affine|bitplane takes no '1'"):
        Codec(token)


def test_a_grid_covers_its_work_within_the_budget() -> None:
    assert Geometry(128, 4).grid(10, 1, 1) == (1, 1)
    assert Geometry(128, 4).grid(10, 1, 129) == (2, 1)
    assert Geometry(128, 4).grid(10, 1, 10**9) == (40, 1)
    assert Geometry(128, 4).grid(10, 8, 10**6) == (5, 8)
    assert Geometry(128, 4).grid(10, 10**6, 10**6) == (1, 40)
    assert Geometry(128, 4).grid(0x10000, 10**6, 1) == (1, 65535)
