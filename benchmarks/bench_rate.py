"""Rate and distortion of every codec and composition on real features: bits per value against squared error.

    python benchmarks/bench_rate.py                                    # JSON lines
    python benchmarks/bench_rate.py --table                            # Markdown
    python benchmarks/bench_rate.py --picture docs/images/rate.png

Features are those of `rate_features.py` (trained once, then read). Error is mean squared error over variance, in dB.
Sizes are whole payload data: codes, scales, and what a lossless stage adds; each payload holds `--batch` samples. The
baseline is `affine:b+zstd`, b = 1 to 8, linear between its points in the logarithm of the error, without points that
another of it beats; `gain` says how much fewer bits a composition takes at equal error. Nothing is fitted to the
features but what a codec itself writes.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rate_features import NETWORKS, features

from tierline.core.coding import codec_for
from tierline.core.telemetry.environment import environment
from tierline.core.types import TensorSpec

BITS = range(1, 9)
BASELINE = "affine + zstd"
CURVES: dict[str, list[str]] = {
    "affine": [f"affine:{b}" for b in BITS],
    BASELINE: [f"affine:{b}+zstd" for b in BITS],
    "affine mse + zstd": [f"affine:{b}:range=mse+zstd" for b in BITS],
    "affine per channel + zstd": [f"affine:{b}:per=channel+zstd" for b in BITS],
    "sparse_bitmap + affine": [f"sparse_bitmap+affine:{b}" for b in BITS],
    "sparse_bitmap + affine + zstd": [f"sparse_bitmap+affine:{b}+zstd" for b in BITS],
    "affine + cabac": [f"affine:{b}+cabac" for b in BITS],
    "affine mse + cabac": [f"affine:{b}:range=mse+cabac" for b in BITS],
    "dithered": [f"dithered:{2**b - 1}" for b in BITS if b > 1],
    "topk + affine:8": [f"topk:{s:g}+affine" for s in (0.02, 0.05, 0.1, 0.2, 0.4)],
    **{name: [name, f"{name}+zstd"] for name in ("float8_e4m3", "bfloat16", "float16")},
}
QUALITIES = (1, 5, 10, 20, 35, 50, 75, 90, 95)
IMAGES = {name: [f"{name}:{quality}" for quality in QUALITIES] for name in ("jpeg", "webp")}
LEVELS_DB = (-8, -12, -16, -20, -24, -28, -32, -36, -40)
DRAWN = {
    "affine": ("#999999", ":"),
    BASELINE: ("#222222", "-"),
    "affine mse + zstd": ("#4477aa", "--"),
    "affine per channel + zstd": ("#66ccee", "--"),
    "sparse_bitmap + affine + zstd": ("#228833", "--"),
    "dithered": ("#ccbb44", ":"),
    "topk + affine:8": ("#aa3377", "-."),
    "affine mse + cabac": ("#ee6677", "-"),
    "affine + cabac": ("#ee6677", "--"),
    "float8_e4m3": ("#999933", ":"),
    "bfloat16": ("#882255", ":"),
    "float16": ("#117733", ":"),
    "jpeg": ("#222222", "--"),
    "webp": ("#4477aa", "-"),
}

Point = tuple[float, float]
"""Bits per value, error in dB."""


def measure(token: str, x_B: Any, batch: int) -> Point:
    """Of payloads of `batch` samples each; the mean over all of them."""
    codec, spec, num_bytes, squared = codec_for(token), TensorSpec(str(x_B.dtype), x_B.shape[1:]), 0, 0.0
    for start in range(0, len(x_B), batch):
        part_B = x_B[start : start + batch]
        payload = codec.encode(part_B)
        num_bytes += len(payload.data)
        squared += float(((codec.decode(payload, spec).astype(np.float64) - part_B) ** 2).sum())
    relative = squared / (x_B.size * x_B.astype(np.float64).var())
    return 8 * num_bytes / x_B.size, 10 * math.log10(max(relative, 1e-30))


def front(points: list[Point]) -> list[Point]:
    """Without the points that another one of the curve beats in bits and error."""
    kept: list[Point] = []
    for bits, error in sorted(points):
        if not kept or error < kept[-1][1]:
            kept.append((bits, error))
    return kept


def bits_at(points: list[Point], level_db: float) -> float:
    """Bits per value of a curve's front at an error, between its points; NaN beyond them."""
    kept = front(points)
    errors = [error for _, error in kept][::-1]
    if not errors[0] <= level_db <= errors[-1]:
        return math.nan
    return float(np.interp(level_db, errors, [bits for bits, _ in kept][::-1]))


def study(x_B: Any, batch: int) -> dict[str, list[Point]]:
    """Every curve on one feature."""
    return {name: [measure(token, x_B, batch) for token in tokens] for name, tokens in CURVES.items()}


def gains(curves: dict[str, list[Point]]) -> Iterator[dict[str, Any]]:
    """At each level of error: bits of the baseline, the best other composition and its gain, and that of zstd alone."""
    for level in LEVELS_DB:
        base = bits_at(curves[BASELINE], level)
        others = {name: bits_at(points, level) for name, points in curves.items() if name != BASELINE}
        found = {name: bits for name, bits in others.items() if not math.isnan(bits)}
        if math.isnan(base) or not found:
            continue
        best = min(found, key=found.__getitem__)
        plain = min((bits for name, bits in found.items() if "cabac" not in name), default=math.nan)
        yield {
            "error_db": level,
            "baseline_bits": round(base, 3),
            "best": best,
            "bits": round(found[best], 3),
            "gain": round(1 - found[best] / base, 3),
            "gain_without_cabac": round(1 - plain / base, 3),
        }


def images(num_rows: int) -> Any:
    """CIFAR-10 test images [B, C, H, W]: the input itself as payload, what a feature has to beat."""
    from tierline.models.data.load import load

    return np.ascontiguousarray(load("cifar10").test.images[:num_rows].transpose(0, 3, 1, 2))


def draw(found: dict[str, dict[str, list[Point]]], titles: dict[str, str], path: Path) -> None:
    """One panel per cut, and one of the input itself."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(16, 9), sharey=True)
    for axis, (cut, curves) in zip(axes.flat, found.items(), strict=False):
        for name in (name for name in DRAWN if name in curves):
            (colour, style), points = DRAWN[name], curves[name]
            points = points if len(points) == 2 else front(points)  # a float and what zstd makes of it: equal errors
            axis.plot(*zip(*points, strict=True), style, color=colour, marker=".", label=name, linewidth=1.6)
        axis.set_title(titles[cut], fontsize=10)
        axis.set_xscale("log", base=2)
        axis.set_xlim(0.2, 18)
        axis.set_ylim(-80, 3)
        axis.grid(alpha=0.3)
    axes.flat[-1].axis("off")
    for axis in axes[-1]:
        axis.set_xlabel("bits per value, everything included")
    for axis in axes[:, 0]:
        axis.set_ylabel("squared error over variance, dB")
    handles: dict[str, Any] = {}
    for axis in axes.flat:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    axes.flat[-1].legend(handles.values(), handles.keys(), loc="center", frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=128, help="samples of each feature")
    parser.add_argument("--batch", type=int, default=1, help="samples of one payload")
    parser.add_argument("--table", action="store_true", help="Markdown instead of JSON lines")
    parser.add_argument("--picture", type=Path, help="draw the curves into this file")
    args = parser.parse_args()
    found, titles = {}, {}
    if not args.table:
        print(json.dumps({"environment": environment(), "rows": args.rows, "batch": args.batch}))
    for network in NETWORKS:
        made = features(network)
        accuracy = float(made.pop("accuracy"))
        for cut, whole_B in made.items():
            x_B = whole_B[: args.rows]
            key, zeros = f"{network}/{cut}", float((x_B == 0).mean())
            shape = "x".join(map(str, x_B.shape[1:]))
            found[key], titles[key] = study(x_B, args.batch), f"{network} {cut} {shape}, {100 * zeros:.0f} % zeros"
            rows = list(gains(found[key]))
            if args.table:
                print(f"\n{titles[key]} (accuracy {100 * accuracy:.1f} %)\n")
                print("| error dB | affine + zstd, bits | best | bits | gain | gain without cabac |")
                print("|---|---|---|---|---|---|")
                for row in rows:
                    first, last = f"{100 * row['gain']:.0f} %", f"{100 * row['gain_without_cabac']:.0f} %"
                    print(
                        f"| {row['error_db']} | {row['baseline_bits']:.2f} | {row['best']} | {row['bits']:.2f} "
                        f"| {first} | {last} |"
                    )
            else:
                line = {"cut": key, "accuracy": accuracy, "zeros": round(zeros, 3), "shape": shape}
                print(json.dumps({**line, "curves": found[key], "gains": rows}))
    input_B = images(args.rows)
    size = input_B.nbytes / len(input_B)
    curves = {name: [measure(token, input_B, args.batch) for token in tokens] for name, tokens in IMAGES.items()}
    tokens = ("raw", "raw+zstd", "jpeg:90", "jpeg", "jpeg:50", "webp", "webp:lossless=1")
    mean_bytes = {token: round(measure(token, input_B, args.batch)[0] * size / 8, 1) for token in tokens}
    print(json.dumps({"input": "cifar10", "curves": curves, "image_bytes": mean_bytes}))
    found["input"], titles["input"] = curves, "the CIFAR-10 image itself, 3x32x32 of 8 bits"
    if args.picture:
        draw(found, titles, args.picture)


if __name__ == "__main__":
    main()
