"""A root that tunes again, in made-up time: a lasting change switches once, a flapping link does not flap the Plan."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import tuned
from retuned import FAST, GOAL, SLOW, World, make_kept

import tierline.cloud.retune as retune_module
from tierline.cloud.config import CloudConfig, PlanKnobs
from tierline.cloud.plans import PlanStore
from tierline.cloud.server import load
from tierline.cloud.shelf import Shelf
from tierline.cloud.switch import Switcher
from tierline.cloud.tuner.apply import plan_of, structure_of, write_choice
from tierline.cloud.tuner.goal import Goal
from tierline.cloud.tuner.job import planned_in
from tierline.cloud.tuner.tuning import Tuning, parse_tuning, tuning_in
from tierline.cloud.tuner.validity import ranges
from tierline.cloud.tuner.world import OutOfTime, Worlds
from tierline.cloud.tunings import Tunings, check_hierarchy
from tierline.core.bundle import Bundle
from tierline.core.errors import PlanError
from tierline.core.link.fleet import PlanChange
from tierline.core.plan import Hierarchy, Plan
from tierline.core.types import Tier


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_kept(tmp_path_factory.mktemp("tuned"))


def test_a_lasting_change_switches_once_and_back_after_the_rest(kept: Path, tmp_path: Path) -> None:
    async def run() -> None:
        world = World(kept, tmp_path)
        first = world.store.in_force()
        assert world.device_cut() == "input"
        await world.run(300, lambda now_s: FAST)
        assert world.whys == [] and world.decided() == []
        await world.run(300, lambda now_s: SLOW)
        assert (world.device_cut(), world.decided()) == ("max_pool2d", ["switched"])
        assert world.whys[0].startswith("drift: up_mbps:device 20 -> 0.1; latency_mean_ms ")
        low, high = world.store.in_force().valid["up_mbps:device"]
        assert low < SLOW < high < FAST
        await world.run(300, lambda now_s: FAST)
        assert (world.device_cut(), world.decided()) == ("input", ["switched", "switched"])
        back = world.store.in_force()
        assert back.bundle == first.bundle, "the Bundle that is there is taken again"
        assert back.thresholds == first.thresholds and back.codecs == first.codecs
        again = World(kept, tmp_path)  # the same folder, after a restart
        assert again.store.in_force().version == 3 and again.device_cut() == "input"
        assert again.decided() == ["switched", "switched"]

    asyncio.run(run())


def test_what_went_together_comes_back_together(kept: Path, tmp_path: Path) -> None:
    """At the slow link's round trip no rate is worth going back, at its rate no round trip: at both as before it is."""

    async def run() -> None:
        world = World(kept, tmp_path)
        await world.run(100, lambda now_s: SLOW, rtt_ms=12.0)
        assert world.device_cut() == "max_pool2d"
        valid = world.store.in_force().valid
        assert valid["up_mbps:device"][1] > 0.45 * FAST and valid["rtt_ms:device"][0] < 4.0
        await world.run(400, lambda now_s: 0.45 * FAST)
        assert (world.device_cut(), world.decided()) == ("input", ["switched", "switched"])
        assert "rtt_ms:device 12 -> 4, up_mbps:device 0.1 -> 9" in world.whys[-1]

    asyncio.run(run())


def test_a_device_that_gets_slow_gives_its_part_away(kept: Path, tmp_path: Path) -> None:
    async def run() -> None:
        world = World(kept, tmp_path)
        await world.run(100, lambda now_s: 0.3)
        assert world.device_cut() == "max_pool2d"
        low, high = world.store.in_force().valid["slower:device"]
        assert world.retuner._known is not None
        expected_ms = world.retuner._known.expected["device"]["0"][1]
        sections = {"0": {"rows": 1, "ms": expected_ms * high * 1.05, "runs": 50}}
        await world.run(100, lambda now_s: 0.3, sections=sections)
        assert world.decided() == ["switched"], "within the margin"
        sections["0"]["ms"] = expected_ms * high * 2
        await world.run(300, lambda now_s: 0.3, sections=sections)
        assert world.device_cut() == "input" and "slower:device 1 -> " in world.whys[-1]
        assert low < 1 < high

    asyncio.run(run())


def test_a_hand_that_comes_meanwhile_counts(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        world = World(kept, tmp_path)

        def slow_ranges(*args: Any) -> dict[str, tuple[float, float]]:
            world.store.change(["codecs.device=raw"], 0, False)
            return ranges(*args)

        monkeypatch.setattr(retune_module, "ranges", slow_ranges)
        await world.run(100, lambda now_s: SLOW)
        assert world.whys == [] and world.store.in_force().codecs[0] == "raw"
        assert "somebody else has put plan 2 in force" in world.retuner.record()["decisions"][0]["why"]

    asyncio.run(run())


def test_what_cannot_be_read_is_said_once(kept: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        world = World(kept, tmp_path)
        for path in (tmp_path / "tunings").iterdir():
            path.unlink()
        await world.run(100, lambda now_s: SLOW)
        assert caplog.text.count("plan 1 cannot be tuned again") == 1

    asyncio.run(run())


def test_a_flapping_link_does_not_flap_the_plan(kept: Path, tmp_path: Path) -> None:
    async def run() -> None:
        world = World(kept, tmp_path)
        await world.run(1800, lambda now_s: SLOW if now_s % 18 < 9 else FAST)
        assert world.whys == [], "never out for long enough"
        await world.run(3600, lambda now_s: SLOW if now_s % 60 < 30 else FAST)
        assert 1 <= len(world.whys) <= 8, "at rests that double"

    asyncio.run(run())


def test_what_saves_little_is_not_worth_a_switch_and_not_weighed_again(kept: Path, tmp_path: Path) -> None:
    async def run() -> None:
        world = World(kept, tmp_path, min_gain=0.95)
        await world.run(600, lambda now_s: SLOW)
        assert (world.decided(), world.whys) == (["kept"], [])
        await world.run(15, lambda now_s: SLOW / 2)
        assert world.decided() == ["kept", "kept"], "it has moved since, and what was known has begun no rest"

    asyncio.run(run())


def test_log_only_says_what_it_would_do_and_off_does_not_look(
    kept: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        world = World(kept, tmp_path / "log", retune="log")
        await world.run(100, lambda now_s: SLOW)
        assert (world.decided(), world.whys) == (["would switch"], [])
        (line,) = (tmp_path / "log" / "decisions.jsonl").read_text().splitlines()
        assert json.loads(line)["drift"] == ["up_mbps:device 20 -> 0.1"]
        assert "up_mbps:device 20 -> 0.1: would switch: latency_mean_ms" in caplog.text
        world = World(kept, tmp_path / "off", retune="off")
        await world.run(100, lambda now_s: SLOW)
        assert world.decided() == []

    asyncio.run(run())


def test_a_switch_that_is_refused_is_told_and_tried_again(kept: Path, tmp_path: Path) -> None:
    async def run() -> None:
        world = World(kept, tmp_path)
        world.refuses = "node 'device': no memory"
        await world.run(100, lambda now_s: SLOW)
        assert world.decided() == ["failed", "failed"]
        assert world.retuner.record()["decisions"][0]["why"] == "node 'device': no memory"
        world.refuses = ""
        await world.run(600, lambda now_s: SLOW)
        assert world.decided()[-1] == "switched"

    asyncio.run(run())


def test_a_search_without_end_is_given_up(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retune_module, "SEARCH_S", -1.0)

    async def run() -> None:
        world = World(kept, tmp_path)
        await world.run(60, lambda now_s: SLOW)
        assert world.decided() == ["failed"]
        assert "not through within" in world.retuner.record()["decisions"][0]["why"]

    asyncio.run(run())
    assert issubclass(OutOfTime, PlanError)


def test_a_bundle_is_taken_again_only_where_it_was_chosen_from_the_same(kept: Path, tmp_path: Path) -> None:
    store = World(kept, tmp_path).store
    tuned_by = store.tuned()
    assert tuned_by is not None
    bundle = store.bundle_for(tuned_by.choice, tuned_by.tuning)
    assert bundle is not None and bundle.digest == store.in_force().bundle
    assert store.bundle_for(tuned_by.choice, "of a network trained anew") is None
    (tmp_path / "plans" / "plan-2.json").write_text("{")  # a damaged one does not hide those before it
    found = store.bundle_for(tuned_by.choice, tuned_by.tuning)
    assert found is not None and found.digest == bundle.digest


def test_two_plans_never_have_one_number(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hand turns a knob while what another Plan was chosen from is being written."""
    world = World(kept, tmp_path)
    keep, began, go_on = world.tunings.keep, threading.Event(), threading.Event()

    def slow_keep(tuning: Tuning) -> str:
        began.set()
        assert go_on.wait(20)
        return keep(tuning)

    monkeypatch.setattr(world.tunings, "keep", slow_keep)
    world.store.attach(lambda plan: None, lambda plan: None)
    desk = SimpleNamespace(on_states=None, check_offers=lambda plan: None)
    switcher = Switcher(world.store, world.shelf, SimpleNamespace(desk=desk), tuned.HIERARCHY, world.tunings)  # type: ignore[arg-type]

    async def run() -> None:
        plan, bundle = world.store.in_force(), world.store.bundle()
        wanted = PlanChange(bundle=bundle.digest, plan=plan.document(), tuning=tuning_in(kept).document())
        change = asyncio.create_task(switcher.change(wanted))
        assert await asyncio.to_thread(began.wait, 20)
        world.store.change(["codecs.device=raw"], 0, False)
        go_on.set()
        with pytest.raises(PlanError, match="another Plan was put in force meanwhile"):
            await change
        assert world.store.in_force().version == 2 and world.store.in_force().codecs[0] == "raw"

    asyncio.run(run())


def test_a_hand_ends_it(kept: Path, tmp_path: Path) -> None:
    async def run() -> None:
        world = World(kept, tmp_path)
        world.store.change(["budget_ms=900"], 0, False)
        assert world.store.in_force().valid and world.store.tuned() is not None, "no knob that a Tuner chooses"
        world.store.change(["codecs.device=affine:8"], 0, False)
        assert world.store.in_force().valid == {} and world.store.tuned() is None
        await world.run(100, lambda now_s: SLOW)
        assert world.whys == []
        assert PlanStore(tmp_path, Shelf(tmp_path))  # what is in its files says so, too
        record = json.loads((tmp_path / "plans" / "plan-3.json").read_bytes())
        assert record["tuned"] is None

    asyncio.run(run())


def test_what_a_plan_was_chosen_from_travels_whole(kept: Path, tmp_path: Path) -> None:
    tuning = tuning_in(kept)
    again = parse_tuning(tuning.document(), "the test")
    assert again == tuning and again.digest() == tuning.digest()
    assert list(again.choice.cuts) == [Tier.DEVICE, Tier.CLOUD]
    job = again.job(Bundle.open(kept / "bundle"))
    assert Worlds(job).best({}).choice == tuning.choice
    assert job.goal == GOAL and tuning.job(job.bundle, Goal("bytes_per_sample")).goal.minimise == "bytes_per_sample"
    with pytest.raises(PlanError, match="the test: not what a Plan was chosen from"):
        parse_tuning(b"{}", "the test")
    tunings = Tunings(tmp_path)
    assert tunings.find(tunings.keep(tuning)) == tuning
    with pytest.raises(PlanError, match="apply it again with --tuned"):
        tunings.find("0" * 64)
    check_hierarchy(tuning, tuned.HIERARCHY)
    with pytest.raises(PlanError, match="tuned for another hierarchy"):
        check_hierarchy(tuning, Hierarchy(tuned.HIERARCHY.nodes[:1]))


def test_a_choice_of_the_same_structure_runs_on_the_same_bundle(kept: Path, tmp_path: Path) -> None:
    tuning: Tuning = tuning_in(kept)
    job = tuning.job(Bundle.open(kept / "bundle"))
    other = msgspec.structs.replace(tuning.choice, codecs={Tier.DEVICE: "raw"})
    assert structure_of(other) == structure_of(tuning.choice)
    plan = plan_of(job.bundle, other, tuned.HIERARCHY, valid={"rtt_ms:device": (1.0, 2.0)})
    assert plan.codecs[0] == "raw" != tuning.choice.codecs[Tier.DEVICE] and plan.valid == {"rtt_ms:device": (1.0, 2.0)}
    image = msgspec.structs.replace(tuning.choice, codecs={Tier.DEVICE: "jpeg"})
    assert structure_of(image) != structure_of(tuning.choice), "an image travels as pixels"
    assert write_choice(job.bundle, image, tmp_path / "jpeg").digest != job.bundle.digest


def test_a_root_starts_with_what_tune_wrote_and_hands_count_more(kept: Path, tmp_path: Path) -> None:
    def made(tuned_in: Path, **knobs: Any) -> Plan:
        path = tmp_path / "hierarchy.toml"
        path.write_text(tuned.TOML.format(model=kept / "bundle").replace("[goal]", f'tuned = "{tuned_in}"\n[goal]'))
        config = CloudConfig(1, str(path), bundle=str(kept / "bundle"), plan=PlanKnobs(**knobs))
        return load(config)[1]

    chosen = planned_in(kept)
    plan = made(kept, budget_ms=900.0)
    assert plan.valid == chosen.valid != {}
    assert (plan.thresholds, plan.codecs, plan.budget_ms) == (chosen.thresholds, chosen.codecs, 900.0)
    assert made(kept, codecs={"device": "raw"}).valid == {}
    other = tmp_path / "other"
    shutil.copytree(kept, other)
    (other / "plan.json").write_bytes(msgspec.structs.replace(chosen, bundle="0" * 64).document())
    with pytest.raises(PlanError, match=r"hierarchy.toml: tuned = .*for another Bundle or for other nodes"):
        made(other)
    with pytest.raises(PlanError, match="give a folder that `tierline tune --out` wrote"):
        made(tmp_path)
