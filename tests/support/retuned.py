"""A root that tunes again, without a network: what it starts with, and a world whose time and status are the test's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import tuned

from tierline.cloud.config import Drifting
from tierline.cloud.plans import PlanStore, Tuned
from tierline.cloud.retune import Retuner
from tierline.cloud.shelf import Shelf
from tierline.cloud.tuner.goal import Goal
from tierline.cloud.tuner.job import Job, keep
from tierline.cloud.tuner.tryout import measure_effects
from tierline.cloud.tuner.tuning import tuning_in
from tierline.cloud.tuner.validity import ranges
from tierline.cloud.tuner.world import Worlds, in_world
from tierline.cloud.tunings import Tunings
from tierline.core.bundle import Bundle
from tierline.core.errors import PlanError
from tierline.core.plan import Plan
from tierline.core.types import Tier

FAST, SLOW = 20.0, 0.1
GOAL = Goal("latency_mean_ms", max_quality_loss=0.02)


def make_kept(folder: Path) -> Path:
    """What `tune --out` writes, for a slow device on a fast link."""
    bundle = tuned.make_bundle(folder / "bundle")
    profile = in_world(tuned.profile_of(bundle), {"rtt_ms:device": 4.0, "up_mbps:device": FAST})
    job = Job(bundle, profile, tuned.HIERARCHY, GOAL, measure_effects(bundle, tuned.CODECS))
    proposal = job.propose()
    keep(job, proposal, folder / "out", ranges(Worlds(job), proposal.chosen.choice))
    return folder / "out"


class World:
    """A root without a network: time and status are the test's, a switch is done at once."""

    def __init__(self, kept: Path, folder: Path, **config: Any) -> None:
        self.shelf, self.tunings = Shelf(folder), Tunings(folder)
        self.store = PlanStore(folder, self.shelf)
        tuning, bundle = tuning_in(kept), Bundle.open(kept / "bundle")
        plan = msgspec.json.decode((kept / "plan.json").read_bytes(), type=Plan)
        self.store.start(plan, bundle, Tuned(self.tunings.keep(tuning), tuning.choice))
        self.retuner = Retuner(
            Drifting(**config),
            None,
            self.store,
            self,
            self.shelf,
            self.tunings,
            tuned.HIERARCHY,
            folder,  # type: ignore[arg-type]
        )
        self.now_s, self.whys = 0.0, list[str]()
        self.refuses = ""

    async def choose(self, bundle: Bundle, plan: Plan, why: str, tuned: Tuned) -> dict[str, Any]:
        if self.refuses:
            raise PlanError(self.refuses)
        plan = msgspec.structs.replace(plan, version=self.store.next_version())
        self.store.commit(plan, bundle, why, tuned)
        self.whys.append(why)
        return {"version": plan.version}

    async def run(self, seconds: float, up_mbps: Callable[[float], float], rtt_ms: float = 4.0, **more: Any) -> None:
        """One look a second; what it begins is waited for, and takes no time."""
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            way = {"rtt_ms": rtt_ms, "up_mbps": up_mbps(self.now_s)}
            self.retuner.look(
                self.now_s, {"device": {"connected": True, "way": way, **more}, "cloud": {"connected": True}}
            )
            if self.retuner._task is not None:
                await asyncio.wait((self.retuner._task,))
            self.now_s += 1

    def decided(self) -> list[str]:
        return [decision["did"] for decision in self.retuner.record()["decisions"]]

    def device_cut(self) -> str:
        tuned = self.store.tuned()
        assert tuned is not None
        return tuned.choice.cuts[Tier.DEVICE]
