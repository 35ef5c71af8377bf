"""Runs a Tuner's choices as real processes behind an emulated link, and measures them; used by `bench_tuner.py`."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import slow_engine

from tierline.cli.fleet_files import FleetSpec
from tierline.cli.supervisor import Fleet
from tierline.cli.trial.answers import Answers
from tierline.cloud.config import PlanKnobs
from tierline.cloud.order_book import OrderBook
from tierline.cloud.tuner.apply import write_choice
from tierline.cloud.tuner.choice import Choice
from tierline.core.bundle import Bundle
from tierline.core.config.sections import Engine
from tierline.core.errors import NodeFailed
from tierline.core.link.ask import ask_profile
from tierline.core.link.fleet import ProfileWish
from tierline.core.plan import Hierarchy, HierarchyNode, Join, make_plan
from tierline.core.profile import Profile
from tierline.core.types import Tier
from tierline.edge.config import SourceConfig

SLOW = Path(__file__).with_name("slow_engine.py")
HIERARCHY = Hierarchy((HierarchyNode("cloud", Tier.CLOUD), HierarchyNode("device", Tier.DEVICE, "cloud", ("view-1",))))
SKIP = 5
"""First answers that do not count: caches, the first message of a connection."""


@dataclass(frozen=True)
class Run:
    """What the answers of one or several runs say."""

    mean_ms: float
    """Each exit's mean in the run where it is smallest, for what else the machine does only adds; weighted by its share
    in all runs."""
    typical_ms: float
    """The same with each exit's median: what a pause of the machine does not move."""
    p99_ms: float
    num: int
    exit_share: dict[str, float]


@dataclass(frozen=True)
class World:
    """A slow device below a cloud."""

    bundle: Bundle
    samples: Path
    factor: float
    times: Path
    """Folder of the slow engine's times."""
    seconds: float
    most: int

    def spec(
        self, bundle: Path, link: str, knobs: PlanKnobs, run_dir: Path, *, idle: bool = False, start: int = 0
    ) -> FleetSpec:
        uri = f"dataset:{self.samples}?loop=true&start={start}"
        view = HIERARCHY.nodes[1].views[0]
        sources = () if idle else (SourceConfig(view, uri, queue="all", in_flight=1),)
        return FleetSpec(
            HIERARCHY,
            bundle,
            join=Join(by="none"),
            plan=knobs,
            engines={Tier.DEVICE: Engine(prefer=(str(SLOW),))},
            sources=sources,
            sinks={} if idle else {"device": [f"jsonl:{run_dir / 'answers.jsonl'}"]},
            link=link or None,
            access=idle,
        )

    def _slow_down(self) -> None:
        os.environ.update(SLOW_ENGINE_FACTOR=str(self.factor), SLOW_ENGINE_TIMES=str(self.times))

    def calibrate(self, choices: Iterable[Choice], new_only: bool = False) -> None:
        """Time all files that a device may be given: those of a Profile, and the first levels of these choices.

        `new_only`: keep times that are there already.
        """
        plan = make_plan(HIERARCHY, self.bundle.manifest, self.bundle.digest)
        order, files = OrderBook(self.bundle, plan, ProfileWish(precisions=("float32",)), "times").order("device")
        digests = {digest: name for name, digest in self.bundle.manifest.files.items()}
        parts = [*(piece.digest for piece in order.pieces), *(head.digest for head in order.heads)]
        models = {files.get(digest) or self.bundle.read(digests[digest]) for digest in parts}
        with tempfile.TemporaryDirectory() as folder:
            for index, choice in enumerate(choices):
                derived = write_choice(self.bundle, choice, Path(folder) / str(index))
                models |= set(_device_files(derived))
        slow_engine.calibrate(sorted(models), self.times, new_only)

    def row_s(self, choice: Choice) -> float:
        """What the device's first level takes for a row, not slowed."""
        with tempfile.TemporaryDirectory() as folder:
            return slow_engine.kept_s(_device_files(write_choice(self.bundle, choice, Path(folder)))[0], self.times)

    def profile(self, link: str, wish: ProfileWish, say: Callable[[str], None]) -> Profile:
        """Of the Bundle with its candidates, measured by the nodes themselves."""
        self._slow_down()
        with tempfile.TemporaryDirectory() as folder:
            spec = self.spec(self.bundle.folder, link, PlanKnobs(), Path(folder), idle=True)
            with Fleet(spec, Path(folder) / "run") as fleet:
                return asyncio.run(ask_profile(fleet.address("cloud"), wish, None, said=lambda step: say(step.state)))

    def records(self, choice: Choice, link: str, start: int = 0) -> list[Any]:
        """The answers of one run, one sample after the other; twice as long where exits make more of them needed."""
        self._slow_down()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            derived = write_choice(self.bundle, choice, folder / "bundle")
            knobs = PlanKnobs(thresholds=choice.exits, max_batch=choice.max_batch)
            spec = self.spec(derived.folder, link, knobs, folder, start=start)
            answers = Answers({"view-1": folder / "answers.jsonl"})
            with Fleet(spec, folder / "run") as fleet:
                until = time.monotonic() + self.seconds * (2 if choice.exits else 1)
                while time.monotonic() < until and len(answers.records["view-1"]) < self.most + SKIP:
                    time.sleep(0.1)
                    fleet.check()
                    answers.poll()
        return whole(answers.records["view-1"][SKIP:])


def _device_files(bundle: Bundle) -> list[bytes]:
    device = [level for level in bundle.manifest.levels if level.tier is Tier.DEVICE]
    return [bundle.read(section.file) for level in device for section in level.sections.values()]


def whole(records: list[Any]) -> list[Any]:
    """Raises NodeFailed where a sample was not answered as it should be."""
    reasons = sorted({record["reason"] for record in records if record["degraded"]})
    if not records or reasons:
        raise NodeFailed(f"{len(records)} answers, some of them degraded: {', '.join(reasons)}")
    return records


def together(runs: list[list[Any]]) -> Run:
    """One or several runs of the same Plan on different samples."""
    by_exit: dict[str, list[Any]] = {}
    for records in runs:
        for name in dict.fromkeys(record["exit"] for record in records):
            times = np.array([record["total_ms"] for record in records if record["exit"] == name])
            by_exit.setdefault(name, []).append(times)
    num = sum(len(records) for records in runs)
    share = {name: sum(map(len, parts)) / num for name, parts in by_exit.items()}
    return Run(
        mean_ms=sum(share[name] * min(float(part.mean()) for part in parts) for name, parts in by_exit.items()),
        typical_ms=sum(share[name] * min(float(np.median(part)) for part in parts) for name, parts in by_exit.items()),
        p99_ms=float(min(np.percentile([record["total_ms"] for record in records], 99) for records in runs)),
        num=num,
        exit_share=share,
    )


def with_link_of(profile: Profile, other: Profile) -> Profile:
    """The nodes of one Profile, the links of another."""
    return msgspec.structs.replace(profile, links=other.links)
