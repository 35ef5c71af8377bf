"""What a byte buys in accuracy: coded features of a DDNN against the coded image itself, MNIST.

    python benchmarks/rate_accuracy.py [--rows 1000] [--picture docs/images/rate_accuracy.png]

The DDNN in full precision of `rate_features.py` (seed 0, 6 devices), which answers at its cloud exit whatever codes
what crosses one cut: `image`, the whole 28x28 image, as a camera without any Section would send it; `device`, the
features of all six devices; `edge`, that of the edge node. A sample is a payload of its own (at `device` six), and
everything in it counts. Squared errors of images and of features cannot be compared; the accuracy that is left can.
Prints JSON lines; the Bundle is trained once, into the cache folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rate_features import train_ddnn_bundle

from tierline.core.coding import codec_for
from tierline.core.flow.levels import FEATURE, LOGITS, engine_maker
from tierline.core.flow.oracle import Oracle
from tierline.core.telemetry.environment import environment
from tierline.core.types import TensorSpec
from tierline.models.views import prepare

QUALITIES = (1, 5, 10, 20, 35, 50, 75, 90, 95)
FLOATS = ["float8_e4m3", "bfloat16", "float16"]
IMAGES: dict[str, list[str]] = {
    "jpeg": [f"jpeg:{quality}" for quality in QUALITIES],
    "webp": [f"webp:{quality}" for quality in QUALITIES],
    "raw, webp lossless": ["raw", "webp:lossless=1"],
}
FEATURES: dict[str, list[str]] = {
    "affine + zstd": [f"affine:{bits}+zstd" for bits in range(1, 9)],
    "affine mse + cabac": [f"affine:{bits}:range=mse+cabac" for bits in range(1, 9)],
    "floats": FLOATS,
}
Point = tuple[float, float]
"""Bytes per sample, accuracy."""


def coded(token: str, x_B: Any) -> tuple[int, Any]:
    """Bytes of all samples, each a payload of its own, and what is decoded."""
    codec, spec, num_bytes = codec_for(token), TensorSpec(str(x_B.dtype), x_B.shape[1:]), 0
    parts = []
    for row in range(len(x_B)):
        payload = codec.encode(x_B[row : row + 1])
        num_bytes += len(payload.data)
        parts.append(codec.decode(payload, spec))
    return num_bytes, np.concatenate(parts)


def curve(tokens: Iterable[str], values: list[Any], accuracy: Callable[[list[Any]], float]) -> list[Point]:
    """Of tensors that all cross the cut for every sample."""
    points = []
    for token in tokens:
        made = [coded(token, x_B) for x_B in values]
        points.append((sum(n for n, _ in made) / len(values[0]), accuracy([x_B for _, x_B in made])))
    return points


def study(num_rows: int) -> tuple[float, dict[str, dict[str, list[Point]]]]:
    """Accuracy of the cloud exit with nothing coded, and by cut every curve."""
    bundle, data = train_ddnn_bundle()
    split = data.test.take(np.arange(num_rows))
    levels = Oracle(bundle, engine_maker("onnxruntime")).levels
    views_NB = prepare(split, bundle.manifest.preprocess).images
    present = np.ones(views_NB.shape[:2], dtype=np.bool_)

    def devices(images_NB: Any) -> list[Any]:
        return [levels[0].run(part, images_NB[n])[FEATURE] for n, part in enumerate(levels[0].parts)]

    def edge(parts: list[Any]) -> Any:
        return levels[1].run("*", levels[0].fuse_features(np.stack(parts), present))[FEATURE]

    def from_edge(x: list[Any]) -> float:
        logits_BK = levels[2].run("*", x[0])[LOGITS]
        return float((logits_BK.argmax(1) == split.labels).mean())

    def from_devices(x: list[Any]) -> float:
        return from_edge([edge(x)])

    def from_image(x: list[Any]) -> float:
        seen = replace(split, images=x[0][:, 0])
        return from_devices(devices(prepare(seen, bundle.manifest.preprocess).images))

    parts = devices(views_NB)
    plain = from_devices(parts)
    found = {
        "image": {name: curve(tokens, [split.images[:, None]], from_image) for name, tokens in IMAGES.items()},
        "device": {name: curve(tokens, parts, from_devices) for name, tokens in FEATURES.items()},
        "edge": {name: curve(tokens, [edge(parts)], from_edge) for name, tokens in FEATURES.items()},
    }
    levels.close()
    return plain, found


def draw(plain: float, found: dict[str, dict[str, list[Point]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = {"image": "#222222", "device": "#ee6677", "edge": "#4477aa"}
    figure, axis = plt.subplots(figsize=(8.5, 5.2))
    for cut, curves in found.items():
        for (name, points), style in zip(curves.items(), ("--", "-", "none"), strict=True):
            mark, x_y = "x" if style == "none" else ".", zip(*sorted(points), strict=True)
            axis.plot(*x_y, linestyle=style, marker=mark, color=colours[cut], linewidth=1.5, label=f"{cut}: {name}")
    axis.axhline(plain, color="#bbbbbb", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_ylim(max(0.0, plain - 0.12), plain + 0.01)
    axis.set_xlabel("bytes per sample, everything included")
    axis.set_ylabel("accuracy at the cloud exit")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000, help="test images")
    parser.add_argument("--picture", type=Path, help="draw the curves into this file")
    args = parser.parse_args()
    plain, found = study(args.rows)
    print(json.dumps({"environment": environment(), "rows": args.rows, "accuracy": plain}))
    for cut, curves in found.items():
        print(json.dumps({"cut": cut, "bytes_and_accuracy": curves}))
    if args.picture:
        draw(plain, found, args.picture)


if __name__ == "__main__":
    main()
