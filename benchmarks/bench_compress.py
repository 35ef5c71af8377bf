"""What do compressors cost and lose? Bits per value against squared error, and time, all of them in one run.

    python benchmarks/bench_compress.py [--rows 256] [--columns 256] [--draws 5]

One float32 matrix of standard normal values; for `indirect`, factors of such a layer's gradient over 32 samples, one of
them after a ReLU, and its bits per value of the gradient. Side information of `nested_dithered` is the matrix and noise
of deviation 0.2. Error is |C(x) - x|^2 / |x|^2, the mean over keys; bits are those of the coded arrays and numbers of a
message, and `framed` those with what `learning.packing` adds. `limit` is the least error that any code of as many bits
could reach on average for independent normal values, 2^(-2 bits) (Shannon 1959); side information may go below it,
and so may `indirect`, whose gradient is of low rank. Times are the best of the draws, in milliseconds.

Prints JSON lines: environment, then one line per compressor.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from tierline.core import catalog
from tierline.core.rng import Key
from tierline.core.telemetry.environment import environment
from tierline.learning.compressor import Compressor, Factors
from tierline.learning.packing import packed

SAMPLES = 32
CONTENDERS: tuple[tuple[str, dict[str, object]], ...] = (
    ("topk", {}),
    ("topk", {"share": 0.1}),
    ("randomk", {"share": 0.1}),
    ("sign", {}),
    ("one_bit", {}),
    ("affine", {}),
    ("qsgd", {}),
    ("qsgd", {"steps": 1, "norm": "max"}),
    ("terngrad", {}),
    ("terngrad", {"clip": 2.5}),
    ("dgc", {}),
    ("dithered", {}),
    ("dithered", {"block": 256}),
    ("dithered", {"steps": 3}),
    ("nested_dithered", {}),
    ("compressive_sampling", {}),
    ("compressive_sampling", {"decoder": "mmse"}),
    ("compressive_sampling", {"share": 1.0, "steps": 1}),
    ("error_feedback", {}),
    ("indirect", {"form": "naive"}),
    ("indirect", {"form": "mv"}),
    ("indirect", {"form": "mvu"}),
    ("indirect", {"form": "dithered", "levels": 3}),
    ("indirect", {"form": "mv", "levels": 8}),
)


def measure(name: str, options: dict[str, object], rows: int, columns: int, draws: int) -> dict[str, object]:
    rng = np.random.default_rng(0)
    update: np.ndarray | Factors = rng.normal(size=(rows, columns)).astype(np.float32)
    if name == "indirect":
        x, d = rng.normal(size=(SAMPLES, rows)), rng.normal(size=(SAMPLES, columns))
        update = Factors(np.maximum(x, 0).astype(np.float32), d.astype(np.float32))
    truth = update.product() if isinstance(update, Factors) else update
    side = truth + np.float32(0.2) * rng.normal(size=truth.shape).astype(np.float32)
    size, error, encode_s, decode_s, num_bytes, framed = float((truth**2).sum(dtype=np.float64)), 0.0, [], [], 0, 0
    for draw in range(draws):
        made: Compressor = catalog.make("compress", name, **options)  # its first message: nothing is remembered yet
        key = Key("bench", draw, "a", "b", "w")
        began = time.perf_counter()
        message = made.compress(key, update)
        sent = time.perf_counter()
        got = made.expand(key, message, side)
        decode_s.append(time.perf_counter() - sent)
        encode_s.append(sent - began)
        error += float(((got.astype(np.float64) - truth) ** 2).sum()) / size / draws
        num_bytes, framed = message.num_bytes, len(packed(message))
    bits = 8 * num_bytes / truth.size
    return {
        "compressor": name,
        "options": options,
        "bits": round(bits, 3),
        "framed": round(8 * framed / truth.size, 3),
        "error": round(error, 3),
        "limit": round(2.0 ** (-2 * bits), 3),
        "encode_ms": round(1e3 * min(encode_s), 2),
        "decode_ms": round(1e3 * min(decode_s), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("rows", 256), ("columns", 256), ("draws", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    print(json.dumps({"environment": environment()}))
    for name, options in CONTENDERS:
        print(json.dumps(measure(name, options, given.rows, given.columns, given.draws)), flush=True)


if __name__ == "__main__":
    main()
