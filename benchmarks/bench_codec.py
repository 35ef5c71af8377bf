"""Are the codecs as fast as they must be? Against memcpy, plain NumPy, torch, hivemind and blosc2 in the same run.

    python benchmarks/bench_codec.py [--values 8192 200704 16777216] [--seconds 90] [--peers FOLDER]

One float32 feature map per size (standard normal, one row), one thread. Every contender takes its turn in every
round (those that were far behind before the first sit out) and its best turn counts, for other work on the machine
only ever adds time. Codecs are called as a node calls them (`Codec.encode` to a Payload, `Codec.decode` into a new
array or into `out`); memcpy is `numpy.copyto` between two arrays that exist, `memcpy to new` into memory that the
system has yet to find, as for a decoder without `out`; torch is `aminmax` and `quantize_per_tensor`; hivemind its
`Uniform8BitQuantization`; blosc2 byte shuffle with lz4 and bit shuffle with zstd, both at level 1. `--peers` names a
folder to import hivemind and blosc2 from (`pip install --target FOLDER`); one that cannot be imported is named in the
first line and compared with nothing.

Batches of short rows come first: the compiled kernels beside those in NumPy, which the same codecs use without a
compiler, must not be slower.

Prints JSON lines: environment; per size the GB/s of float32 read or written by each contender; and each ratio of
speeds beside its limit and whether it held. `read_pass` is the range pass alone, which reads every value once and
writes nothing, `write_pass` fills an array that exists, `write_pass to new` one that does not: at the largest size,
which no cache holds, a row states what these speeds alone would reach (`bound_ratio`), and one that even they would
not hold is marked `beyond_memory`. A table goes to the
error stream. Exit code 1 if a limit within the memory's reach is not held.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
os.environ.setdefault("TIERLINE_KERNELS", "cpu")

import argparse
import contextlib
import importlib
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tierline.core.coding import codec_for
from tierline.core.telemetry.environment import environment
from tierline.core.types import TensorSpec
from tierline.kernels import affine, sparse_bitmap, topk
from tierline.kernels.library import address, bind

BOUNDS = {
    "affine encode": "read_pass",
    "bitplane encode": "read_pass",
    "affine decode": "write_pass to new",
    "affine decode out": "write_pass",
    "bitplane decode": "write_pass to new",
    "bitplane decode out": "write_pass",
}
"""What each cannot outrun where no cache holds the map."""
WARM_UPS, FAR = 5, 20.0
"""A contender whose best warm-up call took so many times the shortest one is not called again: it only costs time."""
Calls = dict[str, Callable[[], object]]

SMALL, MIDDLE, LARGE = 8192, 200704, 1 << 24
ALL = (SMALL, MIDDLE, LARGE)
LIMITS: tuple[tuple[str, str, float, tuple[int, ...]], ...] = (
    ("affine encode", "memcpy", 0.5, (MIDDLE, LARGE)),
    ("affine decode out", "memcpy", 0.8, (MIDDLE, LARGE)),
    ("affine decode", "memcpy to new", 0.8, (MIDDLE, LARGE)),
    ("bitplane encode", "memcpy", 0.9, (MIDDLE,)),
    ("bitplane encode", "memcpy", 2.0, (LARGE,)),
    ("affine decode out", "numpy affine decode", 5.0, (LARGE,)),
    *((f"affine {verb}", f"numpy affine {verb}", at_least, sizes)
      for verb in ("encode", "decode") for at_least, sizes in ((1.0, (SMALL,)), (5.0, (LARGE,)))),
    ("bitplane encode", "numpy bitplane encode", 1.0, (SMALL,)),
    ("bitplane encode", "numpy bitplane encode", 5.0, (LARGE,)),
    *((f"bitplane {verb}", "numpy bitplane decode", at_least, sizes)
      for verb in ("decode", "decode out") for at_least, sizes in ((1.0, (SMALL,)), (5.0, (LARGE,)))),
    *((f"affine {verb}", f"{peer} {verb}", 1.0, ALL)
      for peer in ("torch", "hivemind", "blosc2 lz4", "blosc2 zstd") for verb in ("encode", "decode")
      if (peer, verb) != ("torch", "decode")),
)  # fmt: skip
"""What, against what, at least how many times as fast, for which numbers of values."""


SHORT: tuple[tuple[tuple[int, ...], str], ...] = (
    ((128, 64), "topk+affine"),
    ((128, 64), "affine:4:per=channel"),
    ((1, MIDDLE), "affine:4:per=channel"),
    ((128, 64), "affine:4:range=percentile"),
    ((128, 64), "sparse_bitmap"),
    ((2048, 64), "sparse_bitmap"),
    ((2048, 64), "sparse_bitmap+affine:4"),
)
"""Batches whose rows are short, or single values, beside the kernels in NumPy."""


def ours(x_B: np.ndarray, out_B: np.ndarray) -> Calls:
    affine8, bitplane, spec = codec_for("affine:8"), codec_for("bitplane"), TensorSpec("float32", x_B.shape[1:])
    coded, signs = affine8.encode(x_B), bitplane.encode(x_B)
    lib = bind(tl_affine_range="ppnn")
    assert lib is not None, "TIERLINE_KERNELS=cpu raises where there is no library"
    keys, place = np.array([2**31 - 1, -(2**31)], np.int32), address(x_B)
    return {
        "memcpy": lambda: np.copyto(out_B, x_B),
        "memcpy to new": x_B.copy,
        "read_pass": lambda: lib.tl_affine_range(place, address(keys), 1, x_B.size),
        "write_pass": lambda: out_B.fill(1.0),
        "write_pass to new": lambda: np.full(x_B.shape, 1.0, np.float32),
        "affine encode": lambda: affine8.encode(x_B),
        "affine decode": lambda: affine8.decode(coded, spec),
        "affine decode out": lambda: affine8.decode(coded, spec, out=out_B),
        "bitplane encode": lambda: bitplane.encode(x_B),
        "bitplane decode": lambda: bitplane.decode(signs, spec),
        "bitplane decode out": lambda: bitplane.decode(signs, spec, out=out_B),
    }


def plain_numpy(x_B: np.ndarray) -> Calls:
    def encode() -> tuple[np.ndarray, np.float32, np.float32]:
        lo, hi = x_B.min(), x_B.max()
        scale = (hi - lo) / np.float32(255)
        return np.rint((x_B - lo) / scale).astype(np.uint8), lo, scale

    codes, lo, scale = encode()
    signs, one = np.packbits(x_B >= 0), np.float32(1)
    return {
        "numpy affine encode": encode,
        "numpy affine decode": lambda: codes * scale + lo,
        "numpy bitplane encode": lambda: np.packbits(x_B >= 0),
        "numpy bitplane decode": lambda: np.where(np.unpackbits(signs), one, -one),
    }


def torch_peer(x_B: np.ndarray) -> Calls:
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(1)
    tensor = torch.from_numpy(x_B)

    def encode() -> Any:
        lo, hi = (float(end) for end in torch.aminmax(tensor))
        scale = (hi - lo) / 255
        return torch.quantize_per_tensor(tensor, scale, min(max(round(-lo / scale), 0), 255), torch.quint8)

    coded = encode()
    return {"torch encode": encode, "torch decode": coded.dequantize}


def hivemind_peer(x_B: np.ndarray) -> Calls:
    torch: Any = importlib.import_module("torch")
    compression: Any = importlib.import_module("hivemind.compression")
    codec, tensor = compression.Uniform8BitQuantization(), torch.from_numpy(x_B)
    info = compression.CompressionInfo.from_tensor(tensor)
    return {"hivemind encode": lambda: codec.compress(tensor, info)}  # its decoder does not run on NumPy 2.4


def blosc2_peer(x_B: np.ndarray) -> Calls:
    blosc2: Any = importlib.import_module("blosc2")
    blosc2.set_nthreads(1)
    calls: Calls = {}
    for name, codec, shuffle in (
        ("lz4", blosc2.Codec.LZ4, blosc2.Filter.SHUFFLE),
        ("zstd", blosc2.Codec.ZSTD, blosc2.Filter.BITSHUFFLE),
    ):
        options = {"codec": codec, "filters": [shuffle], "clevel": 1, "nthreads": 1, "typesize": 4}
        data = blosc2.compress2(x_B, **options)
        calls[f"blosc2 {name} encode"] = lambda options=options: blosc2.compress2(x_B, **options)  # type: ignore[misc]
        calls[f"blosc2 {name} decode"] = lambda data=data: blosc2.decompress2(data, nthreads=1)  # type: ignore[misc]
    return calls


PEERS: dict[str, Callable[[np.ndarray], Calls]] = {
    "torch": torch_peer,
    "hivemind": hivemind_peer,
    "blosc2": blosc2_peer,
}


def best_seconds(calls: Calls, budget_s: float) -> tuple[dict[str, float], int]:
    """Of every call the best mean of a short turn, and how many rounds of turns there were."""
    turns, best = {}, dict.fromkeys(calls, float("inf"))
    for name, call in calls.items():
        for _ in range(WARM_UPS):
            began = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - began)
        turns[name] = max(1, int(1e-3 / best[name]))
    ends, rounds = time.perf_counter() + budget_s, 0
    while rounds < 3 or time.perf_counter() < ends:
        rounds += 1
        far = FAR * min(best.values())
        for name, call in calls.items():
            if best[name] > far:
                continue
            call()  # what the one before left in the cache is no one's gain
            began = time.perf_counter()
            for _ in range(turns[name]):
                call()
            best[name] = min(best[name], (time.perf_counter() - began) / turns[name])
    return best, rounds


@contextlib.contextmanager
def numpy_serves() -> Iterator[None]:
    """Codecs run on the oracles, as without a compiler."""
    modules: tuple[Any, ...] = (affine, sparse_bitmap, topk)
    kept = [module._compiled for module in modules]
    for module in modules:
        module._compiled = lambda: None
    try:
        yield
    finally:
        for module, entries in zip(modules, kept, strict=True):
            module._compiled = entries


def small_rows(seconds: float) -> bool:
    """Speeds of both kernels where rows are short, many or single values; whether the compiled ones are as fast."""
    held, share = True, seconds / len(SHORT)
    for shape, token in SHORT:
        x_B = np.maximum(np.random.default_rng(1).normal(size=shape), 0).astype(np.float32)
        codec, spec = codec_for(token), TensorSpec("float32", shape[1:])
        payload, out_B = codec.encode(x_B), np.empty_like(x_B)

        def decode(codec: Any = codec, payload: Any = payload, spec: Any = spec, out_B: Any = out_B) -> object:
            return codec.decode(payload, spec, max_rows=len(out_B), out=out_B)

        calls: Calls = {"encode": lambda codec=codec, x_B=x_B: codec.encode(x_B), "decode": decode}  # type: ignore[misc]
        compiled, _ = best_seconds(calls, share / 2)
        with numpy_serves():
            plain, _ = best_seconds(calls, share / 2)
        for verb in calls:
            ratio = plain[verb] / compiled[verb]
            row = {"what": f"{token} {verb}", "shape": shape, "against": "its NumPy kernels", "ratio": round(ratio, 2)}
            row |= {"mb_per_s": round(x_B.nbytes / compiled[verb] / 1e6), "limit": 1.0, "held": ratio >= 1.0}
            print(json.dumps({"benchmark": "codec", "values": x_B.size, **row}), flush=True)
            verdict = "held" if row["held"] else "NOT HELD"
            side = "x".join(map(str, shape))
            print(f"{side:>9}  {row['what']:<34} {ratio:>8.2f} times NumPy {verdict}", file=sys.stderr)
            held = held and ratio >= 1.0
    return held


def ratios(num_values: int, seconds: dict[str, float]) -> list[dict[str, Any]]:
    found = []
    for what, against, at_least, sizes in LIMITS:
        if num_values not in sizes or against not in seconds:  # a peer that is missing
            continue
        bound = BOUNDS[what]
        ratio, reach = seconds[against] / seconds[what], seconds[against] / seconds[bound]
        row = {"what": what, "against": against, "ratio": round(ratio, 2), "limit": at_least, "held": ratio >= at_least}
        if num_values == LARGE:
            row["bound"], row["bound_ratio"] = bound, round(reach, 2)
            row |= {"beyond_memory": True} if reach < at_least else {}
        found.append(row)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=int, nargs="+", default=list(ALL), help="sizes; limits stand for the defaults")
    parser.add_argument("--seconds", type=float, default=90.0, help="to spend in all")
    parser.add_argument("--peers", help="folder that hivemind and blosc2 were installed into")
    options = parser.parse_args()
    if options.peers:
        sys.path.append(options.peers)
    warnings.simplefilter("ignore")  # of peers
    missing = {}
    for name in list(PEERS):
        try:
            PEERS[name](np.ones((1, 8), np.float32).cumsum(axis=1))
        except ImportError as error:
            missing[name] = str(error)
            del PEERS[name]
    print(json.dumps({"environment": environment(), "missing_peers": missing}), flush=True)
    held = small_rows(options.seconds * 0.1)
    for num_values in options.values:
        x_B = np.random.default_rng(1).normal(size=(1, num_values)).astype(np.float32)
        calls = {**ours(x_B, np.zeros_like(x_B)), **plain_numpy(x_B)}
        for peer in PEERS.values():
            calls |= peer(x_B)
        share = num_values**0.25 / sum(size**0.25 for size in options.values)  # a large map needs more time for a round
        seconds, rounds = best_seconds(calls, 0.9 * options.seconds * share)
        speeds = {name: round(4e-9 * num_values / best, 2) for name, best in seconds.items()}
        rows = ratios(num_values, seconds)
        print(
            json.dumps({"benchmark": "codec", "values": num_values, "rounds": rounds, "gb_per_s": speeds}), flush=True
        )
        for row in rows:
            print(json.dumps({"benchmark": "codec", "values": num_values, **row}), flush=True)
            verdict = "held" if row["held"] else "BEYOND MEMORY" if "beyond_memory" in row else "NOT HELD"
            words = (
                f"{num_values:>9}  {row['what']:<18} / {row['against']:<22} {row['ratio']:>8.2f} >= {row['limit']:<4}"
            )
            beside = f" ({row['bound']} {row['bound_ratio']:.2f})" if "bound" in row else ""
            print(f"{words} {verdict}{beside}", file=sys.stderr)
            held = held and (row["held"] or "beyond_memory" in row)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
