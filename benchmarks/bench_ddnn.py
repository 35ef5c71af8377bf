"""Accuracy, exit shares, bytes and robustness of a DDNN, trained and measured in one process.

    python benchmarks/bench_ddnn.py --data digits --seeds 0 1 2 3 4
    python benchmarks/bench_ddnn.py --data mnist --seeds 0 --device-filters 16
    python benchmarks/bench_ddnn.py --data mnist --seeds 0 --device-filters 16 --plain

Prints JSON lines: an environment stamp, one line per seed, and a line of means over the seeds. All figures are of the
test split, which neither trained the model nor chose a threshold. `lost` is the harm of one dead device: the same
Bundle and thresholds, with that device's parts absent.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tierline.core.telemetry.environment import environment
from tierline.models.calibrate import calibrate, payload_bytes
from tierline.models.evaluate import route, run_bundle, without_device
from tierline.models.make import train_bundle
from tierline.models.views import prepare

SHARES = (0.3, 0.5, 0.7)
"""Local exit shares asked of the validation split."""


def measure(args: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    """Train one model and measure it."""
    training = {} if args.epochs is None else {"epochs": args.epochs}
    if args.plain:
        training["device_dropout"] = 0.0
    began = time.perf_counter()
    bundle, dataset = train_bundle(
        args.data,
        folder,
        devices=args.devices,
        seed=seed,
        model={"device_filters": args.device_filters, "edge_filters": args.edge_filters},
        training=training,
        thresholds=args.thresholds,
        progress=lambda r: print(f"epoch {r.epoch}/{r.epochs} loss {r.loss:.3f} {r.accuracy}", file=sys.stderr),
    )
    train_s = time.perf_counter() - began
    manifest = bundle.manifest
    assert manifest.calibration is not None
    thresholds = manifest.calibration.thresholds
    validation = run_bundle(bundle, prepare(dataset.validation, manifest.preprocess))
    test = prepare(dataset.test, manifest.preprocess)
    outputs = run_bundle(bundle, test)
    overall = route(outputs, thresholds)
    by_share = {}
    for share in SHARES:
        wanted = calibrate(bundle, validation, f"target_exit_share={share}").thresholds
        found = route(outputs, wanted)
        by_share[str(share)] = {"thresholds": wanted, "overall": found.accuracy, "exit_share": found.exit_share}
    lost: dict[str, list[float]] = {name: [] for name in (*manifest.exits(), "overall")}
    for view in range(len(manifest.views)):
        dead = run_bundle(bundle, without_device(test, view))
        for name, logits in dead.logits.items():
            lost[name].append(float((logits.argmax(-1) == dead.labels).mean()))
        lost["overall"].append(route(dead, thresholds).accuracy)
    accuracy = {**outputs.accuracy(), "overall": overall.accuracy}
    return {
        "bench": "ddnn",
        "data": args.data,
        "training": "plain" if args.plain else "fault_aware",
        "seed": seed,
        "device_filters": args.device_filters,
        "epochs": int(manifest.origin["epochs"]),
        "train_s": round(train_s, 1),
        "thresholds": thresholds,
        "accuracy": accuracy,
        "exit_share": overall.exit_share,
        "by_target_share": by_share,
        "payload_bytes": payload_bytes(manifest, overall.exit_share),
        "raw_bytes": int(np.prod(test.images.shape[2:])),
        "bundle_bytes": sum(file.stat().st_size for file in folder.iterdir()),
        "one_device_lost": lost,
        "worst_loss": {name: accuracy[name] - min(found) for name, found in lost.items()},
    }


def mean(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means of all figures that are numbers, in the rows' own nesting."""
    result: dict[str, Any] = {}
    for key, value in rows[0].items():
        values = [row[key] for row in rows]
        if isinstance(value, dict):
            result[key] = mean(values)
        elif isinstance(value, list):
            result[key] = [round(float(x), 4) for x in np.mean(values, axis=0)]
        elif isinstance(value, (int, float)) and key != "seed":
            result[key] = round(float(np.mean(values)), 4)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="name of a data set, or the path of an image folder or zip")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--devices", type=int, default=None)
    parser.add_argument("--device-filters", type=int, default=8)
    parser.add_argument("--edge-filters", type=int, default=16, help="0: no edge level")
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--thresholds", default="target_exit_share=0.4")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--fault-aware", action="store_true", help="random device dropout in training (the default)")
    mode.add_argument("--plain", action="store_true", help="no device dropout")
    args = parser.parse_args()
    print(json.dumps({"bench": "ddnn", "command": shlex.join(sys.argv), "environment": environment()}), flush=True)
    rows = []
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(args, seed, Path(folder)))
        print(json.dumps(rows[-1]), flush=True)
    if len(rows) > 1:
        print(json.dumps({"bench": "ddnn", "seeds": args.seeds, "mean": mean(rows)}), flush=True)


if __name__ == "__main__":
    main()
