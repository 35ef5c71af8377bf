"""Plans of another structure, brought into a hierarchy that runs at full load: each sample answered once, and right?

    python benchmarks/bench_switch.py [--switches 100] [--samples 10000] [--folder DIR]

Real processes on loopback: a cloud, an edge node and two devices with three views each, whose sources never wait and
keep eight samples in flight per view. The network of the wheel in three cuts (its upper Sections at edge and cloud,
both at the cloud, both at the edge node), each with other thresholds, take turns; every fourth switch is a rollback.
Each answer is compared with what the Plan that it names gives in one process. Prints JSON lines: one per tenth of the
switches, then a summary with an environment stamp. Exit code 1 where a sample was lost, answered twice, wrong, met two
Plans or came back degraded.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tierline.cli import supervisor
from tierline.cli.fleet_files import FleetSpec
from tierline.cli.supervisor import Fleet
from tierline.cloud.config import PlanKnobs
from tierline.core.bundle import Bundle, write_bundle
from tierline.core.flow.levels import engine_maker
from tierline.core.flow.oracle import Oracle
from tierline.core.link.ask import change_plan
from tierline.core.plan import Hierarchy, HierarchyNode, Join
from tierline.core.preprocess import Preprocessor
from tierline.core.telemetry.environment import environment
from tierline.core.types import Tier
from tierline.edge.config import SourceConfig

ASSETS = Path(supervisor.__file__).parent / "assets" / "digits"
IN_FLIGHT = 8
VIEWS = [f"view-{i}" for i in range(6)]
HOSTS = {"device-0": VIEWS[:3], "device-1": VIEWS[3:]}
CUTS: dict[str, tuple[tuple[Tier, Tier], dict[str, float]]] = {
    "edge and cloud": ((Tier.EDGE, Tier.CLOUD), {"local": 0.45, "edge": 0.75}),
    "all at the cloud": ((Tier.CLOUD, Tier.CLOUD), {"local": 0.2, "edge": 0.3}),
    "all at the edge": ((Tier.EDGE, Tier.EDGE), {"local": 0.6, "edge": 0.1}),
}
"""Tiers of the Sections above the devices', and thresholds."""

Ran = dict[int, tuple[str, dict[str, float]]]
"""By version: the cut and thresholds of each Plan."""


def make_cuts(folder: Path) -> dict[str, Bundle]:
    """The Bundle of the wheel, its upper Sections elsewhere."""
    whole = Bundle.open(ASSETS)
    files = {name: whole.read(name) for name in whole.manifest.files}
    made = {}
    for number, (name, (tiers, _)) in enumerate(CUTS.items()):
        first, *above = whole.manifest.levels
        levels = [first, *(msgspec.structs.replace(x, tier=tier) for x, tier in zip(above, tiers, strict=True))]
        made[name] = write_bundle(
            folder / f"cut-{number}", msgspec.structs.replace(whole.manifest, levels=levels), files
        )
    return made


def expected(ran: Ran) -> dict[int, tuple[list[str], Any]]:
    """By version: exit and class of every image under that Plan. All cuts compute the same network."""
    bundle = Bundle.open(ASSETS)
    prepare, images = Preprocessor(bundle.manifest.preprocess), np.load(ASSETS / "samples.npz")["images"]
    oracle = Oracle(bundle, engine_maker("onnxruntime"))
    found = oracle.exits(np.stack([[prepare(image, n) for image in images] for n in range(len(VIEWS))]))
    answers = {}
    for version, (_, thresholds) in ran.items():
        names, exit_B = list(found.outputs), oracle.leaving(found, thresholds)
        index_B = np.stack([found.outputs[name]["logits"].argmax(1) for name in names])[exit_B, np.arange(len(exit_B))]
        answers[version] = [names[at] for at in exit_B], index_B
    return answers


def judge(records: list[dict[str, Any]], ran: Ran) -> dict[str, int]:
    """Counts of what must not be, and of what was seen. Samples in flight when the fleet was stopped are left out."""
    answers, counts = expected(ran), Counter[str]()
    by_view: dict[str, list[int]] = defaultdict(list)
    plans: dict[int, set[int]] = defaultdict(set)
    last = max(record["id"]["seq"] for record in records)
    for record in records:
        seq = record["id"]["seq"]
        by_view[record["view"]].append(seq)
        if seq > last - 4 * IN_FLIGHT and record["reason"] in ("stopped", "no_parent"):
            counts["in_flight_at_the_end"] += 1
            continue
        exits, index_B = answers[record["plan"]]
        plans[seq].add(record["plan"])
        counts["degraded"] += record["degraded"]
        counts["wrong"] += (record["exit"], record["index"]) != (exits[record["truth"]], index_B[record["truth"]])
    for seqs in by_view.values():
        counts["answered_twice"] += len(seqs) - len(set(seqs))
        counts["lost"] += max(seqs) + 1 - len(set(seqs))
    counts["met_two_plans"] = sum(len(found) > 1 for found in plans.values())
    counts["samples"], counts["answers"] = len(plans), len(records)
    return {key: counts[key] for key in (*FORBIDDEN, "samples", "answers", "in_flight_at_the_end")}


FORBIDDEN = ("lost", "answered_twice", "wrong", "met_two_plans", "degraded")


def read(paths: list[Path]) -> list[dict[str, Any]]:
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def run(num_switches: int, num_samples: int, folder: Path) -> dict[str, Any]:
    """Switch until both numbers are reached."""
    cuts, images = make_cuts(folder), np.load(ASSETS / "samples.npz")["images"]
    np.savez(folder / "samples.npz", images=images, labels=np.arange(len(images)))  # a record's truth is its image
    names = list(CUTS)
    ran: Ran = {1: (names[0], CUTS[names[0]][1])}
    devices = [HierarchyNode(device, Tier.DEVICE, "edge", tuple(views)) for device, views in HOSTS.items()]
    sinks = {device: folder / f"{device}.jsonl" for device in HOSTS}
    spec = FleetSpec(
        Hierarchy((HierarchyNode("cloud", Tier.CLOUD), HierarchyNode("edge", Tier.EDGE, "cloud"), *devices)),
        cuts[names[0]].folder,
        join=Join("sequence", window_ms=20_000.0),
        sources=[SourceConfig(v, f"dataset:{folder}/samples.npz?loop=true", in_flight=IN_FLIGHT) for v in VIEWS],
        sinks={device: [f"jsonl:{path}"] for device, path in sinks.items()},
        plan=PlanKnobs(thresholds=ran[1][1], budget_ms=60_000.0),
    )
    seconds: dict[str, list[float]] = defaultdict(list)
    with Fleet(spec, folder / "run") as fleet:
        address, began = fleet.address(fleet.root), time.perf_counter()
        while len(ran) <= num_switches or num_lines(sinks["device-0"]) < num_samples * len(HOSTS["device-0"]):
            version = len(ran) + 1
            fleet.check()
            if version % 4 == 0:
                ran[version] = ran[version - 2]
                made = asyncio.run(change_plan(address, rollback_to=version - 2))
            else:
                name = names[(names.index(ran[version - 1][0]) + 1) % len(names)]
                ran[version] = (name, thresholds) = name, CUTS[name][1]
                settings = [f"thresholds.{key}={value}" for key, value in thresholds.items()]
                made = asyncio.run(change_plan(address, bundle=cuts[name], settings=settings))
            if made["version"] != version or made["switch"]["notes"]:
                raise SystemExit(f"plan {version}: {made['version']}, {made['switch']['notes']}")
            for phase in ("prepare_s", "commit_s"):
                seconds[phase].append(made["switch"][phase])
            if (version - 1) % max(1, num_switches // 10) == 0:
                rows = sum(map(num_lines, sinks.values()))
                print(json.dumps({"kind": "progress", "switches": version - 1, "answers": rows}), flush=True)
        wall_s = time.perf_counter() - began
    records = read(list(sinks.values()))
    gaps = pauses(records, ran)
    return {
        "kind": "switch",
        "switches": len(ran) - 1,
        **judge(records, ran),
        "samples_per_s": round(len(records) / len(VIEWS) / wall_s, 1),
        "seconds": {key: {"p50": statistics.median(x), "max": max(x)} for key, x in seconds.items()},
        "latency_ms": gaps,
    }


def pauses(records: list[dict[str, Any]], ran: Ran) -> dict[str, float]:
    """Latency of the first samples of every Plan beside that of all others."""
    first: dict[int, int] = {}
    for record in records:
        first[record["plan"]] = min(first.get(record["plan"], 1 << 60), record["id"]["seq"])
    near: list[float] = []
    far: list[float] = []
    for record in records:
        if record["reason"] == "":
            residence_ms = record["hops"][0]["residence_ms"]
            (near if record["id"]["seq"] < first[record["plan"]] + IN_FLIGHT else far).append(residence_ms)
    return {
        "p50": round(statistics.median(far), 2),
        "p99": round(float(np.percentile(far, 99)), 2),
        "p50_first_of_a_plan": round(statistics.median(near), 2),
        "p99_first_of_a_plan": round(float(np.percentile(near, 99)), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--switches", type=int, default=100)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        result = run(options.switches, options.samples, folder)
    print(json.dumps({**result, "environment": environment()}), flush=True)
    sys.exit(any(result[key] for key in FORBIDDEN))


if __name__ == "__main__":
    main()
