"""Size, error and speed of codecs on one tensor, beside a copy of its bytes: what `tierline bench codec` prints.

On a GPU the copy is to the host and back.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tierline.cli.trial.codec_gpu import Timed, gpu_trial
from tierline.core.coding import codec_for
from tierline.core.errors import CodecError, DataError, ShapeMismatch, UsageError
from tierline.core.types import Array, TensorSpec
from tierline.kernels.library import library

FLOATS = (
    "raw",
    "float16",
    "bfloat16",
    "affine",
    "affine:4",
    "affine:2",
    "affine:4+zstd",
    "affine:4+cabac",
    "sparse_bitmap+affine:4",
    "bitplane",
)
"""What is measured on float32 unless codecs are named; of other dtypes `raw` and `raw+zstd`."""
MAX_BYTES = 1 << 30
"""Of made-up values: beside them lie temporaries, what is decoded, and bytes."""
SLICE = 1 << 20
SECONDS = 0.25
"""Spent on each of encode and decode, at least; the best call counts."""


@dataclass(frozen=True)
class CodecOptions:
    """What the user asked for."""

    shape: str = "32x64x28x28"
    dtype: str = "float32"
    tokens: Sequence[str] = ()
    data: Path | None = None
    """A .npy file instead of made-up values."""
    seed: int = 0
    device: str = "cpu"


def settled_kernels() -> str:
    """Which kernels codecs run on, once none of them is still being built; why it is NumPy goes to stderr in a line.

    Raises BuildError where TIERLINE_KERNELS asks for what is not there.
    """
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        loaded = library(wait=True)
    for warning in told:
        print(f"warning: {warning.message}", file=sys.stderr)
    return "compiled kernels" if loaded else "NumPy kernels"


def measure_codecs(options: CodecOptions) -> list[dict[str, Any]]:
    """A row per codec, after one for a copy; a codec that cannot take the data has a row whose `note` says why.

    Raises UsageError, DataError, UnknownCodec, what no codec at all could be measured for, and MissingDependency and
    EngineError of a GPU.
    """
    if options.device not in ("cpu", "cuda"):
        raise UsageError(f"--device {options.device}: cpu or cuda")
    for token in options.tokens:
        codec_for(token)  # wrong names before any work
    x_B = (
        _read(options.data)
        if options.data
        else made_up(_shape(options.shape, options.dtype), options.dtype, options.seed)
    )
    tokens = options.tokens or (FLOATS if x_B.dtype == np.float32 else ("raw", "raw+zstd"))
    into = np.empty_like(x_B, order="C")
    if options.device == "cuda":
        with gpu_trial(x_B, into) as gpu:
            copies = gpu.copies(best_s)
            return _rows(tokens, x_B, into, copies, lambda token: gpu.measure(token, best_s))
    copy_s = best_s(lambda: np.copyto(into, x_B))
    return _rows(tokens, x_B, into, (x_B.nbytes, copy_s, copy_s), lambda token: _measure(token, x_B, into))


def _rows(
    tokens: Sequence[str], x_B: Array, into: Array, copies: Timed, measure: Callable[[str], Timed]
) -> list[dict[str, Any]]:
    rows, failed = [_row("memcpy", x_B, x_B, copies, copies)], None
    for token in tokens:
        try:
            rows.append(_row(token, x_B, into, measure(token), copies))
        except (CodecError, ShapeMismatch) as error:
            failed = failed or type(error)(f"codec {token!r} on {x_B.dtype}{list(x_B.shape)}: {error}")
            rows.append({**dict.fromkeys(rows[0]), "codec": token, "note": str(error)})
    if failed and all(row["note"] for row in rows[1:]):
        raise failed
    return rows


def _measure(token: str, x_B: Array, into: Array) -> Timed:
    codec, spec = codec_for(token), TensorSpec(x_B.dtype.name, x_B.shape[1:])
    payload = codec.encode(x_B)
    encode_s = best_s(lambda: codec.encode(x_B))
    decode_s = best_s(lambda: codec.decode(payload, spec, max_rows=len(x_B), out=into))
    return len(payload.data), encode_s, decode_s


def made_up(shape: tuple[int, ...], dtype: str, seed: int) -> Array:
    """Floats as a ReLU leaves them (smooth maps, about half zeros); integers evenly over their range."""
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype).kind if dtype in ("float32", "float16", "int8", "uint8", "int32", "int64", "bool") else ""
    if not kind:
        raise UsageError(f"--dtype {dtype}: float32, float16, int8, uint8, int32, int64 or bool")
    if kind == "f":
        noise = rng.standard_normal(shape, np.float32)
        if len(shape) > 2:
            noise += np.roll(noise, 1, axis=-1) + np.roll(noise, 1, axis=-2)
        return np.asarray(np.maximum(noise, 0), dtype)
    if kind == "b":
        return np.asarray(rng.random(shape) < 0.5)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype, endpoint=True)


def best_s(call: Callable[[], object]) -> float:
    """Seconds of the quickest of the calls that fit into `SECONDS`, three at the least."""
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - began < SECONDS:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def _row(name: str, x_B: Array, decoded_B: Array, timed: Timed, copies: Timed) -> dict[str, Any]:
    num_bytes, encode_s, decode_s = timed
    most, squares = _errors(x_B, decoded_B)
    return {
        "codec": name,
        "bytes": num_bytes,
        "bits_per_value": round(8 * num_bytes / x_B.size, 3),
        "max_error": float(f"{most:.3g}"),
        "rms_error": float(f"{math.sqrt(squares / x_B.size):.3g}"),
        "encode_mb_s": round(x_B.nbytes / encode_s / 1e6, 1),
        "decode_mb_s": round(x_B.nbytes / decode_s / 1e6, 1),
        "encode_of_memcpy": round(copies[1] / encode_s, 3),
        "decode_of_memcpy": round(copies[2] / decode_s, 3),
        "note": "",
    }


def _errors(x_B: Array, decoded_B: Array) -> tuple[float, float]:
    """Largest error and sum of squared ones, a slice after the other: in float64 a whole batch takes several times its
    memory."""
    most = squares = 0.0
    flat, decoded = x_B.reshape(-1), decoded_B.reshape(-1)
    for first in range(0, flat.size, SLICE):
        here = slice(first, first + SLICE)
        error = decoded[here].astype(np.float64) - flat[here].astype(np.float64)
        most, squares = np.maximum(most, np.abs(error).max()), squares + float((error**2).sum())
    return float(most), squares


def _shape(text: str, dtype: str) -> tuple[int, ...]:
    sides = text.split("x")
    if not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise UsageError(f"--shape {text}: write numbers above 0 with x between, the batch first, e.g. 32x64x28x28")
    shape = tuple(map(int, sides))
    try:
        width = np.dtype(dtype).itemsize
    except TypeError:
        width = 1  # refused by name later
    if width * math.prod(shape) > MAX_BYTES:
        raise UsageError(f"--shape {text}: more than {MAX_BYTES >> 20} MiB of {dtype}; codecs hold several copies")
    return shape


def _read(path: Path) -> Array:
    try:
        x_B: Array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a .npy file: {error}") from None
    if not isinstance(x_B, np.ndarray) or x_B.ndim == 0 or x_B.size == 0:
        raise DataError(f"{path}: holds no batch; save an array [B, ...] with numpy.save")
    return x_B
