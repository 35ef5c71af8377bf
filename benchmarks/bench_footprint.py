"""What nodes cost: time until a device is ready, resident memory, and whether memory stays flat over many samples.

    python benchmarks/bench_footprint.py [--samples 100000] [--devices 2] [--starts 5]

The Bundle of the wheel on real processes: one cloud, one edge node, and devices with one view each and 32 samples in
flight (two by default: what a node holds per sample does not depend on their number, what a sample costs does).
Prints JSON lines: an environment stamp, `start` (seconds from exec to the ready line of a device whose parents run
already, with an empty state folder, so the Bundle is fetched; `cpu_s` is the median of the CPU time that this took,
which other work on the machine hardly changes), and `memory` (MiB per node at 10, 50 and 100 % of the
samples that the edge node answered). Every figure with a limit stands beside it; one that is not held ends the run
with exit code 1. A device must have loaded the base dependencies only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tierline.cli import supervisor
from tierline.cli.fleet_files import FleetSpec
from tierline.cli.supervisor import Fleet, node_command
from tierline.core.link.ask import ask_status
from tierline.core.plan import Hierarchy, HierarchyNode, Join
from tierline.core.telemetry.environment import environment
from tierline.core.types import Tier
from tierline.edge.config import SourceConfig

READY_LIMIT_S = 1.5
DEVICE_LIMIT_MIB = 120.0
GROWTH_LIMIT_SHARE, GROWTH_LIMIT_MIB = 0.03, 2.0
"""Growth from 10 % of the samples on: the larger of the two."""
MARKS = (0.1, 0.5, 1.0)
IN_FLIGHT = 32
STALLED_S = 60.0
EXTRAS = ("torch", "onnxscript", "sklearn", "cryptography", "PIL", "rich", "typer")
"""Packages that a device of this Bundle has no use for."""

ASSETS = Path(supervisor.__file__).parent / "assets" / "digits"


def fleet_spec(num_devices: int) -> FleetSpec:
    views = [f"view-{i}" for i in range(num_devices)]
    devices = [HierarchyNode(f"device-{i}", Tier.DEVICE, "edge", (view,)) for i, view in enumerate(views)]
    return FleetSpec(
        Hierarchy((HierarchyNode("cloud", Tier.CLOUD), HierarchyNode("edge", Tier.EDGE, "cloud"), *devices)),
        ASSETS,
        join=Join("sequence", window_ms=5000.0),
        sources=[SourceConfig(v, f"dataset:{ASSETS}/samples.npz?loop=true", in_flight=IN_FLIGHT) for v in views],
    )


def seconds_to_ready(file: Path, folder: Path, number: int) -> tuple[float, float, list[str]]:
    """Start the device of `file` with a state folder of its own; its CPU time, and what it loaded beyond the base."""
    command = [*node_command("edge", file), "--set", f"node.state_dir={folder / f'fresh-{number}'}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    log = (folder / "starts.log").open("ab")
    began = time.perf_counter()
    with log, subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=env) as device:
        assert device.stdout and device.stdin
        line = device.stdout.readline()
        elapsed = time.perf_counter() - began
        user, system = Path(f"/proc/{device.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        maps = Path(f"/proc/{device.pid}/maps").read_text()
        device.stdin.close()
        device.wait(10)
    assert json.loads(line)["event"] == "ready"
    cpu_s = (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return elapsed, cpu_s, [name for name in EXTRAS if f"/{name}/" in maps]


def resident_mib(pids: Mapping[str, int]) -> dict[str, float]:
    def of(pid: int) -> float:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 2)

    return {node: of(pid) for node, pid in pids.items()}


def until(fleet: Fleet, num_samples: float, progress: Callable[[int], None]) -> None:
    """Wait until the edge node has answered so many samples."""
    last, moved = -1, time.monotonic()
    while True:
        status = asyncio.run(ask_status(fleet.address("edge")))
        counts: dict[str, int] = status["edge"]["counts"]
        done = sum(count for key, count in counts.items() if key.startswith("exit:"))
        if done > last:
            last, moved = done, time.monotonic()
        progress(done)
        if done >= num_samples:
            return
        fleet.check()
        if time.monotonic() - moved > STALLED_S:
            raise SystemExit(f"nothing was answered for {STALLED_S:g} s; see {fleet.logs}")
        time.sleep(0.25)


def limit(value: float, at_most: float) -> dict[str, Any]:
    return {"value": round(value, 4), "limit": round(at_most, 4), "held": value <= at_most}


def measure_start(fleet: Fleet, folder: Path, num_starts: int) -> dict[str, Any]:
    file = fleet.run_dir / "device-0.toml"
    fleet.kill("device-0")
    found = [seconds_to_ready(file, folder, number) for number in range(num_starts)]
    fleet.restart("device-0")
    extras = sorted({name for _, _, names in found for name in names})
    return {
        "seconds": [round(seconds, 3) for seconds, _, _ in found],
        "cpu_s": statistics.median(cpu_s for _, cpu_s, _ in found),
        "ready_s": limit(statistics.median(seconds for seconds, _, _ in found), READY_LIMIT_S),
        "extras_loaded": {"value": extras, "limit": [], "held": not extras},
    }


def measure_memory(fleet: Fleet, num_samples: int) -> dict[str, Any]:
    began, levels = time.perf_counter(), {}

    def progress(done: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done} of {num_samples}", end="", file=sys.stderr, flush=True)

    for mark in MARKS:
        until(fleet, mark * num_samples, progress)
        levels[mark] = resident_mib(fleet.pids())
    growth = {
        node: limit(levels[1.0][node] - mib, max(GROWTH_LIMIT_MIB, GROWTH_LIMIT_SHARE * mib))
        for node, mib in levels[0.1].items()
    }
    devices = [mib for node, mib in levels[1.0].items() if node.startswith("device-")]
    return {
        "samples": num_samples,
        "samples_per_s": round(num_samples / (time.perf_counter() - began), 1),
        "resident_mib": {f"{mark:.0%}": found for mark, found in levels.items()},
        "device_mib": limit(max(devices), DEVICE_LIMIT_MIB),
        "growth_mib": growth,
    }


def holds(value: Any) -> bool:
    """Whether every limit inside was held."""
    if isinstance(value, Mapping):
        return bool(value.get("held", True)) and all(map(holds, value.values()))
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100_000, help="samples through the edge node")
    parser.add_argument("--devices", type=int, choices=range(1, 7), default=2, help="devices while memory is watched")
    parser.add_argument("--starts", type=int, default=5, help="starts of a device")
    options = parser.parse_args()
    print(json.dumps({"environment": environment()}), flush=True)
    with tempfile.TemporaryDirectory(prefix="tierline-footprint-") as name:
        folder = Path(name)
        # A start is measured beside one device only: others would take the cores it needs.
        for what, num_devices in (("start", 1), ("memory", options.devices)):
            run_dir = folder / what
            run_dir.mkdir()
            with Fleet(fleet_spec(num_devices), run_dir) as fleet:
                result = (
                    measure_start(fleet, run_dir, options.starts)
                    if what == "start"
                    else measure_memory(fleet, options.samples)
                )
            print(json.dumps({"benchmark": "footprint", "what": what, **result}), flush=True)
            if not holds(result):
                print(f"footprint: a limit of {what!r} is not held", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
