"""What precisions below float32 cost and bring on this machine's CPU: run time, bytes of the file, largest error.

    python benchmarks/bench_precision.py [--threads 1] [--net vgg11 ...]

Networks of the zoo with the weights of their initialisation, as one Section each, converted by `models.precision` and
run by ONNX Runtime. Precisions take turns, so that what disturbs one disturbs all; medians. `error` is the largest
difference from float32 by the largest value of float32's output, on samples that were not calibrated on. Prints JSON
lines.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np
import torch

from tierline.core import catalog
from tierline.core.telemetry.environment import environment
from tierline.core.types import FLOAT16, FLOAT32, INT8
from tierline.models.precision.convert import convert
from tierline.models.torch_export import export

NETS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "lenet": ((1, 28, 28), {}),
    "resnet20": ((3, 32, 32), {}),
    "vgg11": ((3, 32, 32), {}),
    "mobile": ((3, 32, 32), {"width": 1.0}),
}
BATCHES = (1, 8)
ROUNDS = 30


def measure(name: str, threads: int) -> None:
    """Print one network's lines."""
    shape, options = NETS[name]
    torch.manual_seed(0)
    model = export(catalog.make("model", name, input_shape=shape, num_classes=10, **options), shape)
    x_B = np.random.default_rng(0).normal(size=(64, *shape)).astype(np.float32)
    files = convert(model, [FLOAT32, FLOAT16, INT8], {"image": x_B[:32]}, name)
    engines = {
        precision: catalog.make("engine", "onnxruntime", model=raw, name=name, threads=threads)
        for precision, raw in files.items()
    }
    outputs = {precision: engine.run({"image": x_B[32:]})["logits"] for precision, engine in engines.items()}
    times: dict[tuple[str, int], list[float]] = {}
    for _ in range(ROUNDS):
        for batch in BATCHES:
            for precision, engine in engines.items():
                began_s = time.perf_counter()
                engine.run({"image": x_B[:batch]})
                times.setdefault((precision, batch), []).append(1e3 * (time.perf_counter() - began_s))
    exact_B = outputs[FLOAT32]
    for precision, raw in files.items():
        line = {
            "net": name,
            "precision": precision,
            "file_bytes": len(raw),
            **{f"ms_batch_{batch}": round(statistics.median(times[precision, batch]), 3) for batch in BATCHES},
            "error": round(float(np.abs(outputs[precision] - exact_B).max() / np.abs(exact_B).max()), 4),
        }
        print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run time of Sections by precision, on the CPU.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--net", action="append", choices=list(NETS))
    arguments = parser.parse_args()
    for name in arguments.net or NETS:
        measure(name, arguments.threads)
    print(json.dumps({"environment": environment(), "threads": arguments.threads}), flush=True)


if __name__ == "__main__":
    main()
