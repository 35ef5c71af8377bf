"""What answers cost while the same link carries a learning update: one slow link, one queue, real processes.

A cloud, and a site that hosts all views of the Bundle in the wheel and escalates every sample, so that each answer
crosses the link. Between them `tierline.cli.relay`: one first-in-first-out queue per direction for whatever the nodes
have to say, 20 Mbit/s and 20 ms by default. A job of `fedavg` is submitted as `tierline train --on fleet` submits it:
the model goes down, the site trains, and its update (int64 sums, twice the model) goes up.

Two fleets after each other: one without samples, for the time that the update takes alone; one that first answers
samples on the idle link, and then goes on while the job runs. Limits: p99 while the update goes up <= 1.5x the idle
p99, and its time <= 1.3x its time alone. Latencies are those of the answers' ledgers; when bulk is under way is read
off the bytes that have come through the relay.

    python benchmarks/bench_coexist.py [--mb 100] [--rate 40] [--link rtt_ms=20,mbit=20]

Prints one JSON line. Takes about four minutes; exit code 1 where a limit does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tierline.cli import supervisor
from tierline.cli.fleet_files import FleetSpec
from tierline.cli.relay.profile import parse_link
from tierline.cli.supervisor import Fleet
from tierline.cli.trial.answers import Answers
from tierline.cloud.config import PlanKnobs
from tierline.cloud.jobs import request_of
from tierline.core.bundle import Bundle
from tierline.core.config.sections import Learn
from tierline.core.link.ask import ask_status
from tierline.core.link.jobs import JobAsker
from tierline.core.plan import Hierarchy, HierarchyNode, Join
from tierline.core.telemetry.environment import environment
from tierline.core.types import Tier
from tierline.edge.config import SourceConfig
from tierline.learning.experiment.file import Experiment, parse

ASSETS = Path(supervisor.__file__).parent / "assets" / "digits"
SITE = "site"
POLL_S = 0.1
IDLE_S = 30.0
WARM_S = 5.0
LONGEST_GAP_S = 5.0
SELDOM_S = 600.0
"""Between samples where none shall be in the way."""
P99_LIMIT, TIME_LIMIT = 1.5, 1.3


def experiment(update_bytes: float) -> tuple[Experiment, int]:
    """One round of one worker, its model as large as the update wants it; its length in bytes (float32)."""
    inputs, classes = 64, 10
    values = update_bytes / 8
    hidden = max(1, round((-inputs - classes + math.sqrt((inputs + classes) ** 2 + 4 * values)) / 2))
    table = {
        "schema": 1,
        "name": "coexist",
        "data": {"name": "digits"},
        "model": {"name": "mlp", "hidden": [hidden, hidden]},
        "train": {"num_workers": 1, "rounds": 1, "num_steps": 10, "batch_size": 10},
        "fleet": {"nodes": [SITE]},
        "arm": [{"id": "fedavg", "strategy": {"name": "fedavg"}}],
    }
    return parse(table, "bench"), 4 * (hidden * (inputs + hidden + classes + 2) + classes)


@dataclass
class Watch:
    """What was seen every POLL_S: time, bytes up and down through the relay, answers so far."""

    at: list[float] = field(default_factory=list)
    up: list[int] = field(default_factory=list)
    down: list[int] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)

    def busy(self, num_bytes: Sequence[int], begin: int, bps: float) -> tuple[int, int]:
        """First and last index, from `begin` on, of the longest stretch of bulk: a quarter of the link's rate and more,
        with gaps of less than LONGEST_GAP_S."""
        best = (begin, begin)
        first = last = begin
        for i in range(begin, len(self.at) - 1):
            if 8 * (num_bytes[i + 1] - num_bytes[i]) <= 0.25 * bps * (self.at[i + 1] - self.at[i]):
                continue
            if self.at[i] - self.at[last] > LONGEST_GAP_S:
                first = i
            last = i + 1
            if self.at[last] - self.at[first] > self.at[best[1]] - self.at[best[0]]:
                best = (first, last)
        return best


class Trial:
    """One fleet; `rate` samples per second, or hardly any."""

    def __init__(self, folder: Path, link: str, rate: float) -> None:
        bundle = Bundle.open(ASSETS)
        self.views = bundle.manifest.views
        self.file = folder / "answers.jsonl"
        self.spec = FleetSpec(
            Hierarchy((HierarchyNode("cloud", Tier.CLOUD), HierarchyNode(SITE, Tier.EDGE, "cloud", tuple(self.views)))),
            bundle.folder,
            join=Join(by="trigger", window_ms=2000.0, period_ms=1000.0 / rate if rate else 1000.0 * SELDOM_S),
            plan=PlanKnobs(budget_ms=30_000.0, thresholds={"local": 0.0, "edge": 0.0}),
            sources=[
                SourceConfig(view, f"dataset:{ASSETS}/samples.npz?loop=true", queue="all", in_flight=4096)
                for view in self.views
            ],
            sinks={SITE: [f"jsonl:{self.file}"]},
            learn={"cloud": Learn("torch"), SITE: Learn("torch")},
            link=link,
        )
        self.bps = parse_link(link).mbit * 1e6
        self.folder, self.answers, self.watch = folder, Answers({"": self.file}), Watch()

    def run(self, what: Experiment, idle_s: float) -> dict[str, Any]:
        """Idle for a while, then the job; what it came to."""
        with Fleet(self.spec, self.folder / "run") as fleet:
            address = fleet.address("cloud")
            while not asyncio.run(ask_status(address)).get(SITE, {}).get("learning", {}).get("trainer"):
                time.sleep(POLL_S)
                fleet.check()
            self._look(fleet, WARM_S)
            begin = len(self.watch.at) - 1
            self._look(fleet, idle_s)
            end = len(self.watch.at) - 1
            idle = self.latency(begin, end)
            job = asyncio.run(_submit(address, what))
            row = job
            while row["status"] in ("waiting", "running"):
                self._look(fleet, 1.0)
                row = asyncio.run(_job(address, job["job"]))
            last = len(self.watch.at) - 1
        if row["status"] != "complete":
            raise SystemExit(f"the job is {row['status']}: {row['error']}")
        found: dict[str, Any] = {"idle_ms": idle, "job_ms": self.latency(end, last)}
        found["job_s"] = round(self.watch.at[last] - self.watch.at[end], 2)
        for way in ("down", "up"):
            num_bytes = getattr(self.watch, way)
            first, final = self.watch.busy(num_bytes, end, self.bps)
            seconds = self.watch.at[final] - self.watch.at[first]
            moved = num_bytes[final] - num_bytes[first]
            found[f"{way}_ms"] = self.latency(first, final)
            found[f"{way}_s"], found[f"{way}_mb"] = round(seconds, 2), round(moved / 1e6, 2)
        return found

    def latency(self, first: int, last: int) -> dict[str, float] | None:
        """Milliseconds from capture to answer, of samples answered between two looks."""
        records = self.answers.records[""][self.watch.answered[first] : self.watch.answered[last]]
        if any(record["degraded"] or record["exit"] != "cloud" for record in records):
            raise SystemExit("some samples were not answered by the cloud")
        times = [record["total_ms"] for record in records if record["view"] == self.views[0]]
        if not times:
            return None
        p50, p99, most = np.percentile(times, (50, 99, 100)).tolist()
        return {"p50": round(p50, 2), "p99": round(p99, 2), "max": round(most, 2), "count": len(times)}

    def _look(self, fleet: Fleet, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (now := time.monotonic()) < until:
            moved = fleet.relays["cloud"].ask(stats=True)["stats"]["bytes"]
            self.answers.poll()
            self.watch.at.append(time.monotonic())
            self.watch.up.append(moved["up"])
            self.watch.down.append(moved["down"])
            self.watch.answered.append(len(self.answers.records[""]))
            time.sleep(max(0.0, now + POLL_S - time.monotonic()))
        fleet.check()


async def _submit(address: str, what: Experiment) -> dict[str, Any]:
    async with JobAsker(address) as root:
        return await root.submit(request_of(what, "fedavg", 0))


async def _job(address: str, job: int) -> dict[str, Any]:
    async with JobAsker(address) as root:
        return next(row for row in await root.jobs() if row["job"] == job)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=100.0, help="length of the update")
    parser.add_argument("--rate", type=float, default=40.0, help="samples per second")
    parser.add_argument("--idle", type=float, default=IDLE_S, help="seconds on the idle link")
    parser.add_argument("--link", default="rtt_ms=20,mbit=20")
    parser.add_argument("--folder", type=Path, help="keep the fleets' files here")
    options = parser.parse_args()
    what, model_bytes = experiment(options.mb * 1e6)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        found = []
        for name, rate, idle_s in (("beside", options.rate, options.idle), ("alone", 0.0, 0.0)):
            (folder / name).mkdir(parents=True)
            found.append(Trial(folder / name, options.link, rate).run(what, idle_s))
    beside, alone = found
    p99 = beside["up_ms"]["p99"] / beside["idle_ms"]["p99"]
    longer = beside["up_s"] / alone["up_s"]
    result = {
        "benchmark": "coexist",
        "link": options.link,
        "samples_per_s": options.rate,
        "model_mb": round(model_bytes / 1e6, 2),
        "beside": beside,
        "alone": {key: alone[key] for key in alone if not key.endswith("_ms")},
        "p99_over_idle": round(p99, 2),
        "upload_over_alone": round(longer, 2),
        "holds": p99 <= P99_LIMIT and longer <= TIME_LIMIT,
    }
    print(json.dumps({**result, "environment": environment()}), flush=True)
    return 0 if result["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
