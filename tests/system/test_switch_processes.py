"""Plans of another structure in a hierarchy of processes: under load, and with a root that is killed."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench import oracle_views
from tiny_bundle import VIEWS, images, make_tiny_bundle, three_tiers

from tierline.cli.fleet_files import FleetSpec
from tierline.cli.supervisor import Fleet
from tierline.cloud.config import PlanKnobs
from tierline.core.bundle import Bundle
from tierline.core.errors import SecurityError, TierlineError
from tierline.core.flow.levels import engine_maker
from tierline.core.flow.oracle import Oracle
from tierline.core.link.ask import change_plan
from tierline.core.link.tls import TlsFiles
from tierline.core.plan import Join
from tierline.core.types import Tier
from tierline.edge.config import SourceConfig

NUM, IN_FLIGHT = 64, 8
THRESHOLDS = {"local": 0.45, "edge": 0.4}
SET = [f"thresholds.{name}={value}" for name, value in THRESHOLDS.items()]
DEVICES = [f"device-{view}" for view in VIEWS]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    tiers = [(Tier.EDGE, Tier.CLOUD), (Tier.CLOUD, Tier.CLOUD), (Tier.EDGE, Tier.EDGE)]
    return [make_tiny_bundle(folder / str(n), seed=7 + n, tiers=(Tier.DEVICE, *above)) for n, above in enumerate(tiers)]


@pytest.fixture(scope="module")
def world(bundles: list[Bundle], world_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("switch")
    for n, view in enumerate(VIEWS):
        np.savez(folder / f"{view}.npz", images=images(256)[n][:NUM], labels=np.arange(NUM))
    spec = FleetSpec(
        three_tiers(),
        bundles[0].folder,
        join=Join(by="sequence", window_ms=10_000.0),
        plan=PlanKnobs(budget_ms=30_000.0, thresholds=THRESHOLDS),
        sources=[SourceConfig(v, f"dataset:{folder}/{v}.npz?loop=true&rate=200", in_flight=IN_FLIGHT) for v in VIEWS],
        sinks={f"device-{v}": [f"jsonl:{folder}/device-{v}.jsonl"] for v in VIEWS},
        tls=True,
    )
    with Fleet(spec, folder) as fleet:
        yield world_of(fleet, {device: folder / f"{device}.jsonl" for device in DEVICES})


def root(world: Any) -> TlsFiles:
    return TlsFiles.of_state(world.fleet.run_dir / "state" / "cloud")


def answered_under(world: Any, version: int, count: int = 40) -> None:
    """Every device has got so many answers under this Plan."""

    def enough() -> bool:
        return all(sum(r["plan"] == version for r in world.news(d)) >= count for d in DEVICES)

    world.until(f"{count} answers under plan {version}", enough)


def wrong(records: list[dict[str, Any]], ran: dict[int, Bundle]) -> list[dict[str, Any]]:
    """Records that are not what the Plan they name gives in one process."""
    oracles = {
        version: Oracle(bundle, engine_maker("onnxruntime")).answers(oracle_views(bundle)[:, :NUM], THRESHOLDS)
        for version, bundle in ran.items()
    }
    return [
        r
        for r in records
        if (r["exit"], r["index"]) != (oracles[r["plan"]][0][r["truth"]], oracles[r["plan"]][1][r["truth"]])
    ]


def test_four_switches_under_load(world: Any, bundles: list[Bundle], command: Callable[..., Any]) -> None:
    """As an operator does it: three with a Bundle, one back."""
    world.until_answered(40)
    address, ran = world.fleet.address("cloud"), {1: bundles[0]}
    common = (address, "--state-dir", str(world.fleet.run_dir / "state" / "cloud"), "--format", "json")
    sets = [word for item in SET for word in ("--set", item)]
    for version, bundle in ((2, bundles[1]), (3, bundles[2]), (4, bundles[0])):
        done = command("plan", "apply", *common, "--bundle", str(bundle.folder), *sets, cwd=world.fleet.run_dir)
        assert done.returncode == 0, done.stderr
        made = json.loads(done.stdout)
        assert (made["version"], made["switch"]["notes"]) == (version, [])
        ran[version] = bundle
        answered_under(world, version)
    done = command("plan", "rollback", "3", *common, cwd=world.fleet.run_dir)
    assert done.returncode == 0, done.stderr
    ran[5] = bundles[2]
    answered_under(world, 5)
    listed = json.loads(command("plan", "ls", *common, cwd=world.fleet.run_dir).stdout)
    assert [row["version"] for row in listed] == [1, 2, 3, 4, 5]
    assert listed[-1]["why"] == "plan 3 again"
    last = min(max(r["id"]["seq"] for r in world.news(device)) for device in DEVICES)
    for device in DEVICES:
        records = world.news(device)
        seen = Counter(r["id"]["seq"] for r in records)
        assert set(seen.values()) == {1} and seen.keys() >= set(range(last - 2 * IN_FLIGHT)), device
        assert {r["reason"] for r in records} == {""}
        assert wrong(records, ran) == []


def test_only_the_root_itself_is_given_bundles(world: Any, bundles: list[Bundle]) -> None:
    with pytest.raises(SecurityError, match="alone changes its Plan"):
        asyncio.run(change_plan(world.fleet.address("cloud"), world.tls, bundle=bundles[0]))


def applying(world: Any, bundle: Bundle, outcome: list[object]) -> threading.Thread:
    """`plan apply` from a thread, whose result or error goes to `outcome`."""

    def ask() -> None:
        try:
            outcome.append(
                asyncio.run(change_plan(world.fleet.address("cloud"), root(world), settings=SET, bundle=bundle))
            )
        except TierlineError as error:
            outcome.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    return thread


def plan_file(world: Any, version: int) -> Path:
    return Path(world.fleet.run_dir / "state" / "cloud" / "plans" / f"plan-{version}.json")


def is_preparing(world: Any, version: int) -> bool:
    """Some node below the root has heard of it."""
    switches = [record["switch"] for name, record in world.status().items() if name != "cloud"]
    return any(switch["plan"] == version for switch in switches)


@pytest.mark.parametrize("moment", ["while nodes prepare", "once it is written"])
def test_a_root_killed_on_the_way_leaves_one_plan(world: Any, bundles: list[Bundle], moment: str) -> None:
    """The file is what counts: whatever nodes had heard by then, all run the Plan of the last file in the end."""
    before = world.status()["cloud"]
    version = before["plan"] + 1
    bundle = bundles[1] if moment == "while nodes prepare" else bundles[0]
    outcome: list[object] = []
    thread = applying(world, bundle, outcome)
    world.until(
        moment,
        lambda: plan_file(world, version).exists() or (moment[0] == "w" and is_preparing(world, version)),
    )
    world.fleet.kill("cloud")
    thread.join(30)
    assert len(outcome) == 1
    expected = version if plan_file(world, version).exists() else before["plan"]
    assert moment[0] == "w" or expected == version
    world.fleet.restart("cloud")

    def all_run_it() -> bool:
        found = [r for r in world.status().values() if r["connected"]]
        return len(found) == 5 and all((r["plan"], r["switch"]["state"]) == (expected, "settled") for r in found)

    world.until(f"all run plan {expected}", all_run_it)
    marks = world.marks()
    world.until("answers", lambda: all(len(world.news(d, marks[d])) >= 40 for d in DEVICES))
    for device in DEVICES:
        seen = Counter(r["id"]["seq"] for r in world.news(device))
        assert set(seen.values()) == {1} and seen.keys() >= set(range(max(seen) - 2 * IN_FLIGHT)), device
