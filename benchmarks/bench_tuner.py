"""The Tuner against the world: what it predicts, what real processes on emulated links measure, and what others choose.

    python benchmarks/bench_tuner.py --bundle FOLDER --data mnist

`FOLDER` is a Bundle with candidates (`tierline model exits lenet-mnist --data mnist --out FOLDER`). A device with a
slowed engine (`slow_engine.py`) sits below a cloud, behind the project's relay as 3G (1.1 Mbit/s, 100 ms), LTE
(5.85 Mbit/s, 50 ms) and Wi-Fi (18.9 Mbit/s, 5 ms). The device is made so slow that device-only takes `--slower` times
what cloud-only takes on Wi-Fi. Statistics and the effect of codecs are of the validation split, measured answers of the
test split.

Every Plan runs `--rounds` times, in turns with the others and on other samples: `tuner_fleet.Run` says what is taken of
them. Beside the mean stands the typical latency, of medians. Accuracy is of all 2,000 test samples, with the Plan's
thresholds and codec.

Prints JSON lines: `run` (each run as it ends), `plan` (predicted and measured), `small_space` (chosen against the best
one measured), `comparison` (Tuner and baselines by link), `sweep` (the cut by bandwidth), `verdict`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tuner_fleet import HIERARCHY, Run, World, together, with_link_of
from tuner_report import RTT_MS, picture, sweep, verdict

from tierline.cloud.tuner.baselines import baselines, is_upload
from tierline.cloud.tuner.choice import Choice, Point, row
from tierline.cloud.tuner.effects import Effects
from tierline.cloud.tuner.goal import Goal
from tierline.cloud.tuner.handling import handling
from tierline.cloud.tuner.ladder import Ladder
from tierline.cloud.tuner.search import propose
from tierline.cloud.tuner.space import Space
from tierline.cloud.tuner.statistics import Statistics
from tierline.cloud.tuner.tryout import Tryout, measure_effects
from tierline.core.bundle import Bundle
from tierline.core.candidates import INPUT, OUTPUT, read_outcomes
from tierline.core.errors import PlanError
from tierline.core.link.fleet import ProfileWish
from tierline.core.profile import Profile
from tierline.core.telemetry.environment import environment
from tierline.core.types import Array, Tier
from tierline.models.data.load import load

LINKS = ("wifi", "lte", "3g")
CODECS = ("raw", "affine:8", "affine:4", "affine:8+cabac", "affine:4+cabac", "jpeg")
LIMIT, NEAR = 0.15, 0.05
"""Of predicted against measured mean latency; of the chosen Plan against the best one measured."""
GOAL = Goal("latency_mean_ms", max_quality_loss=0.01)


@dataclass
class Bench:
    """One Bundle and what was measured for it."""

    bundle: Bundle
    world: World
    effects: Effects
    profiles: dict[str, Profile]
    """By link."""
    test: Tryout
    """The test samples."""
    handling_ms: dict[str, float] = field(default_factory=dict)
    runs: dict[tuple[str, str], list[list[Any]]] = field(default_factory=dict)
    """Answers by Plan and link, a list for each run."""

    def __post_init__(self) -> None:
        assert self.bundle.manifest.candidates is not None
        self.ladder = Ladder.of(self.bundle.manifest.candidates)
        self.statistics = Statistics(read_outcomes(self.bundle))

    def tune(self, link: str | Profile, space: Space | None = None, goal: Goal = GOAL) -> Point:
        profile = self.profiles[link] if isinstance(link, str) else link
        return propose(
            self.ladder, self.statistics, profile, HIERARCHY, goal, effects=self.effects, space=space,
            num_classes=len(self.bundle.manifest.labels), handling_ms=self.handling_ms,
        ).chosen  # fmt: skip

    def small_space(self) -> list[tuple[Space, str]]:
        """Cuts at both ends, at exits and the last inner one; raw without exits, 8 bits with all that are below."""
        names = [name for name, _ in self.ladder.exits]
        thresholds = {name: self.threshold(name) for name in names}
        found = []
        hung = {at for _, at in self.ladder.exits}
        for cut in self.ladder.cuts:
            if cut not in {INPUT, OUTPUT, self.ladder.cuts[-2], *hung}:
                continue
            below = tuple(name for name, at in self.ladder.exits if self.ladder.at(at) <= self.ladder.at(cut))
            for exits in dict.fromkeys([(), below]):
                values = np.array([[thresholds[name] for name in exits]])
                token = "jpeg" if cut == INPUT else "affine:8" if exits else "raw"
                space = Space(
                    ({Tier.DEVICE: cut, Tier.CLOUD: OUTPUT},), (exits,), allows=only(token), thresholds=fixed(values)
                )
                found.append((space, f"{cut} {'+'.join(exits) or 'no exit'} {token}"))
        return found

    def threshold(self, exit_: str) -> float:
        """Of one exit alone: the largest that costs at most a third of a point."""
        grid = np.array([[value] for value in self.statistics.grid(exit_, 200)])
        _, quality_G = self.statistics.outcome((exit_,), grid)
        fits = np.flatnonzero(quality_G >= self.statistics.quality() - 0.003)
        return float(grid[fits[-1], 0]) if len(fits) else 1e-6

    def measure(self, wanted: Mapping[tuple[str, str], Choice], rounds: int) -> None:
        """Run choices by (Plan, link), in turns."""
        for turn in range(rounds):
            for (name, link), choice in wanted.items():
                done = self.runs.setdefault((choice_key(choice), link), [])
                if len(done) <= turn:
                    done.append(self.world.records(choice, link, start=turn * 600))
                    told = {"kind": "run", "turn": turn, "link": link, "name": name, **asdict(together(done[-1:]))}
                    print(json.dumps(told), flush=True)

    def run(self, choice: Choice, link: str) -> Run:
        return together(self.runs[choice_key(choice), link])

    def accuracy(self, choice: Choice) -> float:
        """On the test samples, with thresholds and codec."""
        token, cut = choice.codecs.get(Tier.DEVICE, "raw"), choice.cuts[Tier.DEVICE]
        outcomes = self.test.plain if cut == OUTPUT else self.test.coded(cut, token)
        assert outcomes is not None
        _, quality_G = Statistics(outcomes).outcome(list(choice.exits), np.array([list(choice.exits.values())]))
        return float(quality_G[0])

    def line(self, kind: str, name: str, link: str, point: Point) -> dict[str, Any]:
        run = self.run(point.choice, link)
        predicted = point.predicted.latency_mean_ms
        return {
            "kind": kind, "link": link, "name": name, **row(point), "measured_ms": round(run.mean_ms, 2),
            "typical_ms": round(run.typical_ms, 2), "measured_p99_ms": round(run.p99_ms, 2),
            "error": round(predicted / run.mean_ms - 1, 4), "typical_error": round(predicted / run.typical_ms - 1, 4),
            "accuracy": round(self.accuracy(point.choice), 4), "num": run.num, "measured_share": run.exit_share,
        }  # fmt: skip


def only(token: str) -> Callable[[str, str], bool]:
    """One codec, where it can stand."""
    return lambda cut, found: found == token and is_upload(cut, found)


def fixed(values: Array) -> Callable[[Statistics, Sequence[str], int], tuple[Array, bool]]:
    """These thresholds and no others."""
    return lambda statistics, exits, most: (values, True)


def choice_key(choice: Choice) -> str:
    return msgspec.json.encode(msgspec.structs.replace(choice, engines={}), order="sorted").decode()


def prepare(options: argparse.Namespace, folder: Path) -> Bench:
    """Samples, effects, the device's speed, and a Profile on every link."""
    bundle, data = Bundle.open(options.bundle), load(options.data)
    rows = np.random.default_rng(0).permutation(len(data.test.labels))[:2000]
    samples = folder / "test.npz"
    np.savez(samples, images=data.test.images[rows], labels=data.test.labels[rows])
    some = slice(0, 1024)
    effects = measure_effects(
        bundle, CODECS, images=data.validation.images[some], truths=data.validation.labels[some], keep=options.keep
    )
    world = World(bundle, samples, 1.0, (options.keep or folder) / "times", options.seconds, options.most)
    test = Tryout(bundle, data.test.images[rows], data.test.labels[rows])
    bench = Bench(bundle, world, effects, {}, test)
    small = [_without_profile(space) for space, _ in bench.small_space()]
    world.calibrate(small)
    whole_s = world.row_s(Choice({Tier.DEVICE: OUTPUT, Tier.CLOUD: OUTPUT}, {}, {}, {}))
    say(f"the whole network takes {whole_s * 1e3:.4f} ms a row here")
    probe = World(bundle, samples, 1.0, world.times, options.seconds, options.most)
    upload = Choice({Tier.DEVICE: INPUT, Tier.CLOUD: OUTPUT}, {}, {}, {Tier.DEVICE: "jpeg"})
    cloud_ms = together([probe.records(upload, "wifi") for _ in range(2)]).typical_ms
    bench.world = World(
        bundle, samples, options.slower * cloud_ms / (whole_s * 1e3), world.times, options.seconds, options.most
    )
    print(json.dumps({"kind": "world", "cloud_only_wifi_ms": cloud_ms, "factor": bench.world.factor}), flush=True)
    full = bench.world.profile(
        "wifi", ProfileWish(batches=(1,), codecs=CODECS, run_s=0.2, precisions=("float32",)), say
    )
    short = ProfileWish(("device",), (), (1,), ("raw",), 0.02, ("float32",))
    for link in LINKS:
        bench.profiles[link] = full if link == "wifi" else with_link_of(full, bench.world.profile(link, short, say))
        print(json.dumps({"kind": "link", "link": link, **msgspec.to_builtins(bench.profiles[link].links)}), flush=True)
    name, cut = bench.ladder.exits[0]
    reference = Choice({Tier.DEVICE: cut, Tier.CLOUD: OUTPUT}, {name: 1e-3}, {}, {Tier.DEVICE: "raw"})
    bench.handling_ms = handling(bench.world.records(reference, "wifi"))
    print(json.dumps({"kind": "handling_ms", **bench.handling_ms}), flush=True)
    return bench


def _without_profile(space: Space) -> Choice:
    """Of a space of one choice, what its first level is made of."""
    (cuts,), (exits,) = space.cuts, space.exits
    return Choice(dict(cuts), dict.fromkeys(exits, 0.5), {}, {Tier.DEVICE: "jpeg" if INPUT in cuts.values() else "raw"})


def small_spaces(bench: Bench, options: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Errors of all Plans, and how far each link's chosen Plan is from the best one measured."""
    points = {
        (name, link): bench.tune(link, space, Goal("latency_mean_ms"))
        for link in options.links
        for space, name in bench.small_space()
    }
    bench.measure({key: point.choice for key, point in points.items()}, options.rounds)
    errors, gaps = [], []
    for (name, link), point in points.items():
        line = bench.line("plan", name, link, point)
        errors.append(line["error"])
        print(json.dumps(line), flush=True)
    for link in options.links:
        fits = {
            key: point
            for key, point in points.items()
            if key[1] == link and point.predicted.quality_loss <= 0.01 + 1e-9
        }
        chosen = min(fits, key=lambda key: fits[key].predicted.latency_mean_ms)
        took = {key: bench.run(point.choice, link).mean_ms for key, point in fits.items()}
        best = min(took, key=lambda key: took[key])
        gaps.append(took[chosen] / took[best] - 1)
        print(
            json.dumps({"kind": "small_space", "link": link, "plans": len(fits), "chosen": chosen[0],
                        "chosen_ms": round(took[chosen], 2), "best": best[0], "best_ms": round(took[best], 2),
                        "gap": round(gaps[-1], 4)}),
            flush=True,
        )  # fmt: skip
    return errors, gaps


def comparison(bench: Bench, options: argparse.Namespace) -> dict[str, dict[str, dict[str, Any]]]:
    """Tuner and baselines on every link, by link and name."""
    points: dict[tuple[str, str], Point] = {}
    for link in options.links:
        points["tuner", link] = bench.tune(link)
        for name, space in baselines(bench.ladder, HIERARCHY).items():
            try:
                points[name, link] = bench.tune(link, space)
            except PlanError as error:
                print(json.dumps({"kind": "comparison", "link": link, "name": name, "none": str(error)}), flush=True)
    bench.world.calibrate([point.choice for point in points.values()], new_only=True)
    bench.measure({key: point.choice for key, point in points.items()}, options.rounds)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for (name, link), point in points.items():
        line = bench.line("comparison", name, link, point)
        found.setdefault(link, {})[name] = line
        print(json.dumps(line), flush=True)
    return found


def work_below(bench: Bench) -> dict[str, float]:
    """Share of the work below each cut."""
    assert bench.bundle.manifest.candidates is not None
    return {cut.name: cut.work_below for cut in bench.bundle.manifest.candidates.cuts}


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--links", nargs="+", default=list(LINKS), choices=LINKS)
    parser.add_argument("--slower", type=float, default=3.2, help="device-only by cloud-only on Wi-Fi")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each run, twice as long with exits")
    parser.add_argument("--most", type=int, default=400, help="answers of each run")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="folder for times and effects, taken up again by the next start")
    parser.add_argument("--picture", type=Path, help="draw the cut by bandwidth (.svg)")
    options = parser.parse_args()
    print(json.dumps({"kind": "environment", **environment()}), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        bench = prepare(options, Path(folder))
        rows = sweep(
            bench.tune, bench.profiles["lte"], baselines(bench.ladder, HIERARCHY)["neurosurgeon"], work_below(bench)
        )
        print(json.dumps({"kind": "sweep", "rtt_ms": RTT_MS, "rows": rows}), flush=True)
        if options.picture:
            options.picture.write_text(picture(rows), "utf-8")
        errors, gaps = small_spaces(bench, options)
        table = comparison(bench, options)
    result = verdict(errors, gaps, table, LIMIT)
    print(json.dumps(result), flush=True)
    return 0 if result["largest_error"] <= LIMIT and result["largest_gap"] <= NEAR else 1


if __name__ == "__main__":
    sys.exit(main())
