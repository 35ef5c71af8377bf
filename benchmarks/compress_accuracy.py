"""Bits per coordinate against squared error and final accuracy, of every compressor in one run of an experiment.

    tierline train examples/experiments/compression-mnist.toml --out RUNS
    python benchmarks/compress_accuracy.py RUNS [--after 50] [--picture docs/images/compression_mnist.png]

Accuracy and bits are those of the finished runs in the folder: bits that a worker sends, over its gradients' values and
all rounds, warm-up included, without the model on its way down. Error is |C(g) - g|^2 / |g|^2 summed over tensors, of
one batch's gradient per worker, at the first model and after so many rounds of the arm that compresses nothing; with
`error_feedback` that of the compressor inside, on its first message. `nested_dithered`, which `sync_sgd` does not take,
is given the mean gradient of the other workers as side information: it has an error and no accuracy. `indirect` takes
layers' factors only, and is in `bench_compress.py`.

Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tierline.cli.experiment.scene import scene
from tierline.cli.experiment.simulate import simulate
from tierline.core import catalog
from tierline.core.arrays import Params
from tierline.core.errors import ConfigError
from tierline.core.rng import Key
from tierline.learning.cast import SERVER
from tierline.learning.compressor import Compressor
from tierline.learning.experiment.file import Arm, Measure, Setting
from tierline.models.data.load import load

NESTED: tuple[str, dict[str, object]] = ("nested_dithered", {})


class Silent:
    """Keeps nothing."""

    def note(self, *_: object) -> None: ...

    def save(self, *_: object) -> None: ...

    def saved(self, *_: object) -> None: ...


@dataclass
class Runs:
    """The finished runs of one arm, one per seed."""

    heads: list[dict[str, Any]] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    num_bytes: list[float] = field(default_factory=list)

    def bits(self, num_values: int) -> float:
        """Per worker, round and value, upwards."""
        train = self.heads[0]["setting"]["train"]
        messages = train["rounds"] * train["num_workers"]
        return float(8 * (np.mean(self.num_bytes) / (messages * num_values) - 4))

    @property
    def compressor(self) -> tuple[str, dict[str, object]] | None:
        """Without `error_feedback`, and its options."""
        table = self.heads[0]["strategy"]
        name = table.get("compress")
        return (name.removeprefix("error_feedback+"), table.get("options", {})) if name else None


def read(folder: Path) -> dict[str, Runs]:
    """By arm, in the order in which they ended. Raises ConfigError."""
    found: dict[str, Runs] = {}
    for path in sorted(folder.glob("*/seed-*.jsonl"), key=lambda path: path.stat().st_mtime):
        head, *rows, end = map(json.loads, path.read_text("utf-8").splitlines())
        if end.get("status") == "complete":
            last = {row["metric"]: row["value"] for row in rows}
            runs = found.setdefault(head["arm"], Runs())
            runs.heads.append(head)
            runs.accuracy.append(last["test_accuracy"])
            runs.num_bytes.append(last["num_bytes"])
    if not any(runs.compressor is None for runs in found.values()):
        raise ConfigError(f"{folder}: no finished run of an arm that compresses nothing")
    return found


def gradients(head: Mapping[str, Any], after: int) -> list[list[Params]]:
    """Of all workers, at the first model and after so many rounds."""
    given, seed = msgspec.convert(head["setting"], Setting), head["seed"]
    setting = msgspec.structs.replace(given, train=msgspec.structs.replace(given.train, rounds=after))
    arm, dataset = Arm(id=head["arm"], strategy=head["strategy"]), load(setting.data.name, seed)
    rules = simulate(scene(arm, setting, seed, dataset, Path()), Measure(every=after, metrics=["num_bytes"]), Silent())
    stage = scene(arm, setting, seed, dataset, Path())
    points = (stage.population.start, rules[SERVER].x)
    return [[stage.trainers[me].gradient(x, stage.batch(me, after)).values for me in stage.workers] for x in points]


def loss_of(name: str, options: Mapping[str, object], of_workers: list[Params]) -> tuple[float, float]:
    """Bits per value and relative squared error, over all workers."""
    error = size = num_bits = 0.0
    for index, g in enumerate(of_workers):
        others = [other for other in of_workers if other is not g]
        made: Compressor = catalog.make("compress", name, **options)
        for tensor, values in g.items():
            key = Key("bench", 0, f"{index}", "server", tensor)
            side = np.mean([other[tensor] for other in others], axis=0) if made.promise.needs_side else None
            message = made.compress(key, values)
            got = made.expand(key, message, side)
            error += float(((got.astype(np.float64) - values) ** 2).sum())
            size += float((values.astype(np.float64) ** 2).sum())
            num_bits += 8 * message.num_bytes
    return num_bits / sum(g.flat.size for g in of_workers), error / size


@dataclass(frozen=True)
class Point:
    """One row of the table: NaN where a run or the error does not exist."""

    arm: str
    lr: float
    bits: float
    early: float
    late: float
    accuracy: float


def points(found: Mapping[str, Runs], after: int) -> Iterator[Point]:
    plain = next(runs for runs in found.values() if runs.compressor is None)
    early, late = gradients(plain.heads[0], after)
    for arm, runs in found.items():
        lr = runs.heads[0]["setting"]["train"]["optimizer"]["lr"]
        at_first, at_last = (loss_of(*runs.compressor, at)[1] if runs.compressor else 0.0 for at in (early, late))
        yield Point(arm, lr, runs.bits(early[0].flat.size), at_first, at_last, float(np.mean(runs.accuracy)))
    bits, error = loss_of(*NESTED, early)
    yield Point(NESTED[0], np.nan, bits, error, loss_of(*NESTED, late)[1], np.nan)


def draw(rows: list[Point], title: str, path: Path) -> None:
    """Two panels over the same bits: error, and accuracy."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(14, 6))
    told: set[tuple[float, float]] = set()
    for place, row in enumerate(row for row in rows if row.early > 0.0):
        colour = "#4477aa" if row.arm.startswith("feedback") or row.arm == "dgc" else "#ee6677"
        for axis, value in ((left, row.late), (right, row.accuracy)):
            point = (round(row.bits, 1), round(value, 5))
            if not np.isnan(value) and point not in told:  # with and without feedback, errors are the same
                told.add(point)
                axis.plot(row.bits, value, "o", color=colour)
                axis.annotate(
                    row.arm, (row.bits, value), (5, (4, -10)[place % 2]), textcoords="offset points", fontsize=8
                )
    for row in (row for row in rows if row.early == 0.0):
        right.axhline(row.accuracy, color="#999999", linestyle="--", label="without compression")
    for axis in (left, right):
        axis.set_xscale("log", base=2)
        axis.set_xlabel("bits that a worker sends per coordinate of its gradient")
        axis.grid(alpha=0.3)
    left.set_yscale("log")
    left.set_ylabel("squared error of one message over squared norm")
    right.set_ylabel("test accuracy after the last round")
    right.legend(loc="lower right")
    figure.suptitle(f"{title}; blue: what is lost is sent later")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of a finished experiment")
    parser.add_argument("--after", type=int, default=50, help="rounds before the second look at the errors")
    parser.add_argument("--picture", type=Path, help="draw into this file")
    args = parser.parse_args()
    found = read(args.runs)
    rows = sorted(points(found, args.after), key=lambda row: -row.bits)
    columns = ("arm", "bits per coordinate", "error at the start", "later", "learning rate", "accuracy")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for row in rows:
        told = ["-" if np.isnan(value) else f"{value:.3g}" for value in (row.early, row.late, row.lr)]
        accuracy = "-" if np.isnan(row.accuracy) else f"{row.accuracy:.3f}"
        print(f"| `{row.arm}` | {row.bits:.2f} | {' | '.join(told)} | {accuracy} |")
    if args.picture:
        setting = next(iter(found.values())).heads[0]["setting"]
        train = setting["train"]
        title = f"{setting['data']['name']}, {train['num_workers']} workers, {train['rounds']} rounds"
        draw(rows, title, args.picture)


if __name__ == "__main__":
    main()
