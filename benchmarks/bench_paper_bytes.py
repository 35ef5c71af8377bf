"""Bytes of DDNN's own configuration: 32x32 RGB views, six devices, 4 binary filters, one ConvP, T = 0.8, no edge level.

    python benchmarks/bench_paper_bytes.py [--samples 300] [--threshold 0.8]

The paper's six cameras (MVMC, 3 classes) are stood in for by six shifted copies of one image: of CIFAR-10 where
TIERLINE_DATA_DIR has it (three of its classes), else of made images. Training is brief: only bytes matter, and the
share of local exits at T is what such a model gives. The fleet is real processes behind the relay of `--link lan`,
which counts every byte of the TCP connections. Prints JSON lines: an environment stamp, then

    payload   coded tensors per device and sample, beside the formula 4 |C| + (1 - l) f o / 8 and raw offload (3072)
    framing   what tierline and gRPC add per message, as nodes estimate it; total = payload + framing
    wire      what the relay counted upwards, less what a fleet sends before its second sample (joining), and less
              what it sends while idle for as long (heartbeats)

Limits: payload equals the formula to a thousandth, raw / payload >= 20. One that is not held ends the run with exit
code 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tierline.cli.fleet_files import FleetSpec
from tierline.cli.supervisor import Fleet
from tierline.cloud.config import PlanKnobs
from tierline.core.bundle import Bundle
from tierline.core.errors import DataError
from tierline.core.link.ask import ask_status
from tierline.core.plan import Hierarchy, HierarchyNode, Join
from tierline.core.telemetry.environment import environment
from tierline.core.types import Array, Tier
from tierline.edge.config import SourceConfig
from tierline.models.data.dataset import Dataset, Split
from tierline.models.data.load import load
from tierline.models.make import train_bundle, write_samples

CLASSES = ("automobile", "deer", "truck")
SHIFTS = ((0, 0), (0, 6), (6, 0), (0, -6), (-6, 0), (4, 4))
"""Rows and columns by which each device's view is off."""
RAW_BYTES = 3 * 32 * 32
LEAST_RATIO = 20.0
FILTERS = 4
FEATURE_BYTES = FILTERS * 16 * 16 // 8
"""f o / 8: one ConvP halves both sides, one bit per value."""
NUM_TRAIN, NUM_VALIDATION = 600, 200
IDLE_S = 3.0
STALLED_S = 60.0


def pictures(num_test: int) -> tuple[str, list[Split]]:
    """Three splits of 32x32 RGB images of three classes, and their name."""
    sizes = (NUM_TRAIN, NUM_VALIDATION, num_test)
    try:
        data = load("cifar10", 0)
    except DataError:
        return "made", [made(count, seed) for seed, count in enumerate(sizes)]
    wanted = [data.labels.index(name) for name in CLASSES]
    splits = []
    for split, count in zip((data.train, data.validation, data.test), sizes, strict=True):
        chosen = split.take(np.flatnonzero(np.isin(split.labels, wanted))[:count])
        splits.append(Split(chosen.images, np.searchsorted(wanted, chosen.labels)))
    return "cifar10", splits


def made(count: int, seed: int) -> Split:
    """Noise around one colour gradient per class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(CLASSES), count)
    ramp = np.linspace(0, 120, 32)
    shapes = np.stack([np.add.outer(ramp, ramp), np.add.outer(ramp[::-1], ramp), np.add.outer(ramp, ramp[::-1])])
    images = shapes[labels][..., None] + rng.normal(0, 400, (count, 32, 32, 3))
    return Split(images.clip(0, 255).astype(np.uint8), labels.astype(np.int64))


def six_views(split: Split) -> Split:
    """Each device sees the image from where it stands."""
    views = np.stack([np.roll(split.images, shift, axis=(1, 2)) for shift in SHIFTS], axis=1)
    labels: Array = split.labels
    return Split(views, labels, np.tile(labels[:, None], (1, len(SHIFTS))))


def fleet_spec(bundle: Bundle, samples: Path, threshold: float, num_samples: int) -> FleetSpec:
    views = bundle.manifest.views
    devices = [HierarchyNode(f"device-{i}", Tier.DEVICE, "cloud", (view,)) for i, view in enumerate(views)]
    return FleetSpec(
        Hierarchy((HierarchyNode("cloud", Tier.CLOUD), *devices)),
        bundle.folder,
        join=Join("sequence", window_ms=5000.0),
        plan=PlanKnobs(thresholds={"local": threshold}, budget_ms=30_000.0),
        sources=[SourceConfig(view, f"dataset:{samples}?count={num_samples}") for view in views],
        link="lan",
    )


def settled(fleet: Fleet, num_samples: int) -> dict[str, Any]:
    """Status once every node has answered every sample, and its counters have reached the root."""
    last, moved = -1, time.monotonic()
    while True:
        status = asyncio.run(ask_status(fleet.address("cloud")))
        counts = [sum(n for key, n in node["counts"].items() if key.startswith("exit:")) for node in status.values()]
        if len(counts) == 1 + len(SHIFTS) and min(counts) >= num_samples:
            return status
        if sum(counts) > last:
            last, moved = sum(counts), time.monotonic()
        fleet.check()
        if time.monotonic() - moved > STALLED_S:
            raise SystemExit(f"nothing was answered for {STALLED_S:g} s; see {fleet.logs}")
        time.sleep(0.1)


def run(spec: FleetSpec, run_dir: Path, num_samples: int) -> tuple[dict[str, Any], float, float]:
    """Status after so many samples, bytes upwards without heartbeats, and bytes per second of the idle fleet."""
    run_dir.mkdir()
    with Fleet(spec, run_dir) as fleet:

        def counted() -> int:
            return int(fleet.relays["cloud"].ask(stats=True)["stats"]["bytes"]["up"])

        began = time.monotonic()
        status = settled(fleet, num_samples)
        elapsed, wire = time.monotonic() - began, counted()
        time.sleep(IDLE_S)
        idle_per_s = (counted() - wire) / IDLE_S
    return status, wire - idle_per_s * elapsed, idle_per_s


def measure(status: Mapping[str, Any], num_samples: int, wire_bytes: float, idle_per_s: float) -> dict[str, Any]:
    """`wire_bytes`: of all samples but the first."""
    devices = [node for name, node in status.items() if name != "cloud"]
    rows = num_samples * len(devices)

    def per_row(key: str) -> float:
        return float(sum(node["links"]["parent"][key] for node in devices)) / rows

    exits = status["cloud"]["counts"]
    local = exits.get("exit:local", 0) / num_samples
    payload, framing = per_row("sent_payload_bytes"), per_row("sent_framing_bytes")
    formula = 4 * len(CLASSES) + (1 - local) * FEATURE_BYTES
    return {
        "samples": num_samples,
        "local_exit_share": round(local, 4),
        "bytes_per_device_and_sample": {
            "payload": round(payload, 3),
            "formula": round(formula, 3),
            "framing": round(framing, 3),
            "total": round(payload + framing, 3),
            "wire": round(wire_bytes / (rows - len(devices)), 3),
            "raw": RAW_BYTES,
        },
        "framing_by_message": round(
            sum(n["links"]["parent"]["sent_framing_bytes"] for n in devices)
            / sum(n["links"]["parent"]["sent_frames"] for n in devices),
            2,
        ),
        "idle_bytes_per_s": round(idle_per_s, 1),
        "formula_error": {"value": abs(payload - formula) / formula, "limit": 1e-3},
        "raw_by_payload": {"value": round(RAW_BYTES / payload, 2), "limit": LEAST_RATIO},
        "raw_by_total": round(RAW_BYTES / (payload + framing), 2),
    }


def is_held(result: Mapping[str, Any]) -> bool:
    error, ratio = result["formula_error"], result["raw_by_payload"]
    return bool(error["value"] <= error["limit"] and ratio["value"] >= ratio["limit"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--threshold", type=float, default=0.8)
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    print(json.dumps({"environment": environment()}), flush=True)
    name, splits = pictures(options.samples)
    train, validation, test = map(six_views, splits)
    dataset = Dataset(f"{name}-six-shifts", list(CLASSES), train, validation, test)
    model = {"device_filters": FILTERS, "device_blocks": 1, "edge_filters": 0, "device_precision": "binary"}
    with tempfile.TemporaryDirectory(prefix="tierline-bytes-") as folder:
        bundle, _ = train_bundle(
            dataset,
            Path(folder) / "bundle",
            model=model,
            training={"epochs": options.epochs},
            thresholds="best_accuracy",
        )
        samples = Path(folder) / "samples.npz"
        write_samples(samples, dataset)
        joining = run(fleet_spec(bundle, samples, options.threshold, 1), Path(folder) / "one", 1)
        status, wire_bytes, idle_per_s = run(
            fleet_spec(bundle, samples, options.threshold, len(test)), Path(folder) / "all", len(test)
        )
        result = measure(status, len(test), wire_bytes - joining[1], idle_per_s)
    told = {"benchmark": "paper_bytes", "data": dataset.name, "threshold": options.threshold, **result}
    print(json.dumps({**told, "held": is_held(result)}), flush=True)
    return 0 if is_held(result) else 1


if __name__ == "__main__":
    sys.exit(main())
