"""A link that gets slow while samples flow: the root tunes again, the cut climbs to the device, no sample is lost."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tuned
from exit_nets import digits

from tierline.cli.fleet_files import FleetSpec
from tierline.cli.supervisor import Fleet
from tierline.cloud.config import Drifting
from tierline.cloud.tuner.goal import Goal
from tierline.cloud.tuner.job import Job, keep
from tierline.cloud.tuner.tryout import measure_effects
from tierline.cloud.tuner.validity import ranges
from tierline.cloud.tuner.world import Worlds
from tierline.core.bundle import Bundle
from tierline.core.config.sections import Engine
from tierline.core.link.ask import ask_profile
from tierline.core.link.fleet import ProfileWish
from tierline.core.plan import Join
from tierline.core.types import Tier
from tierline.edge.config import SourceConfig

PLODDING = Path(__file__).parent.parent / "support" / "plodding_engine.py"
FAST, SLOW = "rtt_ms=4,mbit=20", {"mbit": 0.15}
NUM = 40


def fleet_spec(folder: Path, bundle: Path, **more: Any) -> FleetSpec:
    data = digits().test
    np.savez(folder / "samples.npz", images=data.images[:NUM], labels=np.arange(NUM))
    return FleetSpec(
        tuned.HIERARCHY,
        bundle,
        join=Join(by="none"),
        engines={Tier.DEVICE: Engine(prefer=(str(PLODDING),))},
        sources=(SourceConfig("view-1", f"dataset:{folder}/samples.npz?loop=true&rate=15", queue="all"),),
        sinks={"device": [f"jsonl:{folder}/device.jsonl"]},
        link=FAST,
        **more,
    )


@pytest.mark.slow
def test_the_cut_follows_the_link(
    tmp_path: Path, world_of: Any, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIERLINE_CACHE_DIR", str(tmp_path / "cache"))
    bundle = tuned.make_bundle(tmp_path / "bundle")
    spec = fleet_spec(tmp_path, bundle.folder, drift=Drifting(hold_s=2.0, rest_s=1.0))
    with Fleet(spec, tmp_path / "run") as fleet:
        world = world_of(fleet, {"device": tmp_path / "device.jsonl"})
        address = fleet.address("cloud")
        wish = ProfileWish(codecs=("raw", "affine:4"), batches=(1,), run_s=0.05)
        profile = asyncio.run(ask_profile(address, wish, said=lambda step: None))
        goal = Goal("latency_mean_ms", max_quality_loss=0.02)
        job = Job(bundle, profile, spec.hierarchy, goal, measure_effects(bundle, wish.codecs), spec.join)
        proposal = job.propose()
        assert proposal.chosen.choice.cuts[Tier.DEVICE] == "input"
        valid = ranges(Worlds(job), proposal.chosen.choice)
        assert valid["up_mbps:device"][0] > 2 * SLOW["mbit"]
        keep(job, proposal, tmp_path / "tuned", valid)
        done = command("plan", "apply", address, "--tuned", str(tmp_path / "tuned"), cwd=tmp_path)
        assert done.returncode == 0, done.stderr

        def listed() -> list[dict[str, Any]]:
            out = command("plan", "ls", address, "--format", "json", cwd=tmp_path).stdout
            plans: list[dict[str, Any]] = json.loads(out)
            return plans

        def under(version: int, count: int = 10) -> None:
            world.until(f"plan {version}", lambda: sum(r["plan"] == version for r in world.news("device")) >= count)

        def measured(is_so: Callable[[float], bool]) -> None:
            def holds() -> bool:
                tuning = world.status()["cloud"].get("tuning", {})
                return is_so(tuning.get("measured", {}).get("up_mbps:device", 1.0))

            world.until("soundings that tell", holds)

        under(2)
        assert {r["hops"][-1]["node"] for r in world.news("device") if r["plan"] == 2} == {"cloud"}
        fleet.relays["cloud"].ask(set=SLOW)
        measured(lambda mbps: mbps < 0.3)
        under(3)
        fleet.relays["cloud"].ask(set={"mbit": 20})
        measured(lambda mbps: mbps > 5.0)
        under(4)
        plans = listed()
        status = world.status()["cloud"]["tuning"]
        records = world.news("device")
    assert [plan["version"] for plan in plans] == [1, 2, 3, 4]
    assert plans[1]["why"].startswith("tuned: device..input")
    for plan, cut in ((plans[2], "max_pool2d"), (plans[3], "input")):
        assert plan["why"].startswith("drift: ") and "up_mbps:device" in plan["why"] and f"device..{cut}" in plan["why"]
    assert [decision["did"] for decision in status["decisions"]].count("switched") == 2
    assert {len(r["hops"]) for r in records if r["plan"] == 3 and r["exit"] == "max_pool2d"} == {1}
    seen = Counter(r["id"]["seq"] for r in records)
    assert set(seen.values()) == {1} and seen.keys() >= set(range(max(seen) - 4)), "none lost, none answered twice"
    assert {r["reason"] for r in records} == {""}
    kept = [Bundle.open(folder) for folder in (tmp_path / "run" / "state" / "cloud" / "bundles").iterdir()]
    assert len(kept) == 2, "going back takes the Bundle that is there"
