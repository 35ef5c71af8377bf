"""Codecs on a GPU against copies of the same bytes, in one run.

    python benchmarks/bench_codec_gpu.py [--mib 256] [--rows 1] [--rounds 20] [--tokens affine bitplane ...]

Prints JSON lines. `correct`: for each codec, whether bytes and values are the CPU's, on batches of odd shapes and on
the one that is measured. `encode`: the kernels alone, as float32 bytes taken in per second, beside a copy within the
device's memory of the same bytes, both by the GPU's own clock; a copy reads and writes them all, and `affine` reads
them twice. `end_to_end`: from a call until the packed bytes are in host memory, beside copying float32 to pinned host
memory and to where the bytes are decoded again. Medians of rounds that take turns. Exit code 1 where bytes or values
differ, or `encode` misses its limit at 256 MiB or more; 2 with one line where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import numpy as np

from tierline.core.coding import codec_for
from tierline.core.telemetry.environment import environment
from tierline.core.types import TensorSpec
from tierline.kernels.cuda import Codec, CudaError, Device, DeviceArray, device

TOKENS = (
    *("affine", "affine:4", "affine:1", "affine:rounding=stochastic", "affine:range=percentile", "affine:4:range=mse"),
    *("bitplane", "float16", "bfloat16", "float8_e4m3", "float8_e4m3:row", "radix:3", "dithered", "raw"),
    *("sparse_bitmap", "sparse_bitmap+affine:4", "topk", "topk+affine"),
)
ODD_SHAPES = ((1, 1), (3, 7), (2, 3, 5, 11), (5, 4099))
SEED = 7
LIMIT_OF_COPY = 0.7
LIMIT_FROM_MIB = 256
"""Below it a part of the array stays in the caches, and launches weigh in: shown, not judged."""
MANY_PASSES = ("topk", "range=")
"""In tokens that read their input four times or more, where a copy reads and writes it once: shown, not judged."""


def emit(kind: str, **fields: Any) -> None:
    print(json.dumps({"kind": kind, **fields}), flush=True)


@contextmanager
def allocation(gpu: Device, kind: str, num_bytes: int) -> Iterator[int]:
    """Address of `device` or `pinned` memory."""
    make, free = {"device": ("cuMemAlloc_v2", "cuMemFree_v2"), "pinned": ("cuMemHostAlloc", "cuMemFreeHost")}[kind]
    pointer = gpu.driver.handle(make, num_bytes, *([0] if kind == "pinned" else []))
    try:
        yield pointer
    finally:
        gpu.driver.call(free, pointer)


def gpu_ms(gpu: Device, stream: int, work: Callable[[], object]) -> float:
    with gpu.stopwatch(stream) as times:
        work()
    return times[0]


def wall_ms(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1e3


def take_turns(rounds: int, *measures: Callable[[], float]) -> list[float]:
    """Medians, after two rounds to warm up."""
    times = [[measure() for measure in measures] for _ in range(rounds + 2)]
    return [statistics.median(column) for column in zip(*times[2:], strict=True)]


def values(token: str, shape: tuple[int, ...]) -> np.ndarray:
    """What a codec is for: symbols, what a ReLU leaves, or normal values."""
    rng = np.random.default_rng(1)
    if token.startswith("radix"):
        return rng.integers(0, 3, shape).astype(np.float32)
    x_B = rng.standard_normal(shape, np.float32)
    return np.maximum(x_B, 0) if "sparse" in token else x_B


def correct(gpu: Device, codec: Codec, token: str, x_B: np.ndarray) -> bool:
    """Whether the GPU writes the CPU's bytes and reads them as the CPU does. `gpu` is current."""
    here = codec_for(token)
    payload = here.encode(x_B, seed=SEED)
    expected = here.decode(payload, TensorSpec("float32", x_B.shape[1:]), max_rows=len(x_B))
    with allocation(gpu, "device", x_B.nbytes) as place:
        array = DeviceArray(place, x_B.shape)
        gpu.driver.call("cuMemcpyHtoDAsync_v2", place, x_B.ctypes.data, x_B.nbytes, 0)
        gpu.synchronize(0)
        same_bytes = codec.encode(array, seed=SEED) == payload.data
        gpu.driver.call("cuMemsetD8Async", place, 0xFF, x_B.nbytes, 0)
        codec.decode(payload.data, array, seed=SEED)
        found = np.empty_like(x_B)
        gpu.driver.call("cuMemcpyDtoHAsync_v2", found.ctypes.data, place, x_B.nbytes, 0)
        gpu.synchronize(0)
    same_values = found.tobytes() == expected.tobytes()
    emit("correct", token=token, shape=x_B.shape, bytes=same_bytes, values=same_values)
    return same_bytes and same_values


def bench(gpu: Device, token: str, num_rows: int, num_values: int, rounds: int) -> bool:
    """Whether all is correct and the limit held, or not one to judge."""
    host_BV = values(token, (num_rows, num_values))
    num_bytes, call = host_BV.nbytes, gpu.driver.call
    with (
        gpu.current(),
        closing(Codec(token, gpu)) as codec,
        allocation(gpu, "device", num_bytes) as x,
        allocation(gpu, "device", num_bytes) as y,
        allocation(gpu, "pinned", num_bytes) as pinned,
    ):
        batches = [host_BV, *(values(token, shape) for shape in ODD_SHAPES)]
        is_right = sum(correct(gpu, codec, token, x_B) for x_B in batches) == len(batches)
        call("cuMemcpyHtoDAsync_v2", x, host_BV.ctypes.data, num_bytes, 0)
        gpu.synchronize(0)
        x_BV, y_BV = DeviceArray(x, host_BV.shape, host_BV), DeviceArray(y, host_BV.shape)
        codec.warmup(host_BV.shape)
        data = codec.encode(x_BV, seed=SEED)

        def copy_out() -> None:
            call("cuMemcpyDtoHAsync_v2", pinned, x, num_bytes, 0)
            gpu.synchronize(0)

        def copy_in() -> None:
            call("cuMemcpyHtoDAsync_v2", y, pinned, num_bytes, 0)
            gpu.synchronize(0)

        copy, encode = take_turns(
            rounds,
            lambda: gpu_ms(gpu, 0, lambda: call("cuMemcpyDtoDAsync_v2", y, x, num_bytes, 0)),
            lambda: gpu_ms(gpu, 0, lambda: codec.queue(x_BV)),
        )
        out, coded_out, into, coded_in = take_turns(
            rounds,
            lambda: wall_ms(copy_out),
            lambda: wall_ms(lambda: codec.encode_view(x_BV)),
            lambda: wall_ms(copy_in),
            lambda: wall_ms(lambda: codec.decode(data, y_BV, seed=SEED)),
        )
    common = {"token": token, "num_rows": num_rows, "num_values": num_values, "mib": num_bytes / 2**20}
    judged = num_bytes >= LIMIT_FROM_MIB * 2**20 and not any(word in token for word in MANY_PASSES)
    emit(
        "encode",
        **common,
        copy_gb_per_s=round(num_bytes / copy / 1e6, 2),
        encode_gb_per_s=round(num_bytes / encode / 1e6, 2),
        of_copy=round(copy / encode, 3),
        limit=LIMIT_OF_COPY if judged else None,
    )
    emit(
        "end_to_end",
        **common,
        coded_bytes=len(data),
        encode_and_copy_out_ms=round(coded_out, 3),
        copy_float32_out_ms=round(out, 3),
        gain_out=round(out / coded_out, 2),
        copy_in_and_decode_ms=round(coded_in, 3),
        copy_float32_in_ms=round(into, 3),
        gain_in=round(into / coded_in, 2),
    )
    return is_right and (not judged or copy / encode >= LIMIT_OF_COPY)


def main(arguments: Sequence[str] | None = None, gpu: Device | None = None) -> int:
    parser = argparse.ArgumentParser(description="Codecs on a GPU against copies of the same bytes.")
    parser.add_argument("--mib", type=float, default=256, help="float32 MiB per batch")
    parser.add_argument("--rows", type=int, default=1, help="rows of the batch")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tokens", nargs="+", default=TOKENS)
    options = parser.parse_args(arguments)
    try:
        gpu = gpu or device()
    except CudaError as error:
        print(error, file=sys.stderr)
        return 2
    driver = {"cuda_driver": gpu.driver.integer("cuDriverGetVersion")}
    described = {"gpu": gpu.name, "arch": gpu.arch, "integrated": gpu.integrated, "cubin": gpu.image().name, **driver}
    emit("environment", **environment(), **described)
    num_values = max(1, int(options.mib * 2**20 / 4) // options.rows)
    held = [bench(gpu, token, options.rows, num_values, options.rounds) for token in options.tokens]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
