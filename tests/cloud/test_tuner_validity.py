"""For which worlds a choice holds: ends of ranges against searches beside them, and what is worth a switch."""

from __future__ import annotations

import pytest
import tuner_world as w

import tierline.cloud.tuner.world as world_module
from tierline.cloud.tuner.again import expected_ms, is_same, weigh
from tierline.cloud.tuner.goal import Goal
from tierline.cloud.tuner.search import propose
from tierline.cloud.tuner.validity import FAR, MARGIN, ranges
from tierline.cloud.tuner.world import Deadline, OutOfTime, Worlds, in_world, quantities
from tierline.core.errors import PlanError
from tierline.core.types import Tier

FASTEST = Goal("latency_mean_ms", max_quality_loss=0.1)
STATISTICS = w.statistics()


@pytest.fixture(autouse=True)
def _outcomes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world_module, "read_outcomes", lambda bundle: STATISTICS.outcomes)


def worlds(goal: Goal = FASTEST, hierarchy: object = w.TWO, **more: object) -> Worlds:
    return Worlds(w.job(hierarchy, goal, STATISTICS, **more))  # type: ignore[arg-type]


def searched(made: Worlds, world: dict[str, float]) -> float:
    """The goal's figure of the best choice by the whole search, front and all."""
    job = made.job
    profile = in_world(job.profile, world)
    found = propose(
        w.LADDER, STATISTICS, profile, job.hierarchy, job.goal, effects=job.effects, num_classes=3
    ).chosen.predicted
    return float(getattr(found, job.goal.minimise))


def test_without_its_front_a_search_chooses_alike() -> None:
    made = worlds()
    for mbit in (0.1, 1.0, 5.85, 50.0):
        best = made.best({"up_mbps:dev": mbit})
        assert made.figure(best) == pytest.approx(searched(made, {"up_mbps:dev": mbit}))
        assert made.priced(best.choice, {"up_mbps:dev": mbit}).predicted == best.predicted


@pytest.mark.parametrize("hierarchy", [w.TWO, w.THREE], ids=["two tiers", "three tiers"])
@pytest.mark.parametrize("goal", [FASTEST, Goal("latency_p99_ms", max_quality_loss=0.1)], ids=lambda g: g.minimise)
def test_beyond_an_end_something_is_better_and_before_it_nothing_is(hierarchy: object, goal: Goal) -> None:
    made = worlds(goal, hierarchy)
    choice, known = made.best({}).choice, quantities(made.job.profile)
    found = ranges(made, choice)
    assert {name.partition(":")[0] for name in found} == {"rtt_ms", "up_mbps", "slower"}
    ends = 0
    for name, (low, high) in found.items():
        assert low <= known[name] <= high
        for end, inwards in ((low, 1.03), (high, 1 / 1.03)):
            mine, best = (made.figure(made.priced(choice, {name: end})), searched(made, {name: end}))
            assert mine <= (1 + MARGIN) * best * 1.001
            inside = {name: end * inwards}
            assert made.figure(made.priced(choice, inside)) <= (1 + MARGIN) * searched(made, inside) * 1.001
            if end not in (known[name] / FAR, known[name] * FAR):
                ends += 1
                outside = {name: end / inwards}
                assert made.figure(made.priced(choice, outside)) > (1 + MARGIN) * searched(made, outside) * 0.999
    assert ends >= 1


def test_a_range_ends_where_a_limit_does() -> None:
    best = worlds().best({})
    limit = best.predicted.latency_mean_ms * 1.02
    made = worlds(Goal("bytes_per_sample", max_quality_loss=0.1, max_latency_mean_ms=limit))
    choice = made.best({}).choice
    _, high = ranges(made, choice)["rtt_ms:dev"]
    at = made.priced(choice, {"rtt_ms:dev": high}).predicted
    beyond = made.priced(choice, {"rtt_ms:dev": high * 1.03}).predicted
    assert at.latency_mean_ms <= limit < beyond.latency_mean_ms


def test_what_runs_nothing_has_no_speed_and_no_time_gives_no_ranges() -> None:
    made = worlds(mbit=0.05)
    choice = made.best({}).choice
    assert choice.cuts[Tier.DEVICE] == "output"
    assert "slower:cloud" not in ranges(made, choice) and "slower:dev" in ranges(made, choice)
    said: list[str] = []
    assert ranges(Worlds(made.job, Deadline(-1)), choice, say=said.append) == {}
    assert len(said) == 3 and "is not known" in said[0]
    with pytest.raises(OutOfTime):
        Worlds(made.job, Deadline(-1)).best({})
    with pytest.raises(PlanError, match="no such quantity"):
        made.best({"rtt_ms:nobody": 3.0})


def test_as_a_link_gets_slow_the_cut_climbs_and_the_gain_is_told() -> None:
    made = worlds(mbit=20.0, rtt_ms=5.0)
    choice = made.best({}).choice
    same = weigh(made, choice, {})
    assert same.gain == pytest.approx(0.0) and is_same(same.best.choice, choice)
    slow = {"up_mbps:dev": 0.05}
    weighed = weigh(made, choice, slow)
    assert weighed.before == pytest.approx(made.figure(made.priced(choice, slow)))
    assert weighed.after == pytest.approx(searched(made, slow))
    assert weighed.gain == pytest.approx(1 - weighed.after / weighed.before) and weighed.gain > 0.3
    ladder = w.LADDER.cuts
    assert ladder.index(weighed.best.choice.cuts[Tier.DEVICE]) > ladder.index(choice.cuts[Tier.DEVICE])


def test_where_no_limit_can_be_met_the_least_is_sought() -> None:
    made = worlds(Goal("latency_mean_ms", max_quality_loss=0.1, max_latency_p99_ms=90.0), mbit=50.0, rtt_ms=5.0)
    choice = made.best({}).choice
    slow = {"up_mbps:dev": 0.05, "slower:dev": 4.0}
    weighed = weigh(made, choice, slow)
    assert "max_latency_p99_ms = 90" in weighed.note
    assert weighed.after == pytest.approx(searched(worlds(mbit=50.0, rtt_ms=5.0), slow))
    assert weighed.before < float("inf"), "compared without the limit that nothing meets"


def test_sections_are_expected_to_take_what_the_profile_says() -> None:
    made = worlds()
    choice = made.best({}).choice
    stages = w.LADDER.stages(choice.cuts, list(choice.exits))
    found = expected_ms(made, choice)
    tiers = {"dev": Tier.DEVICE, "cloud": Tier.CLOUD}
    for node, levels in found.items():
        assert all(stages[int(level)].tier is tiers[node] for level in levels)
        assert all(set(by_batch) == {1, 4, 16} for by_batch in levels.values())
    assert found["dev"]["0"][1] >= w.PIECES["input", "a"] * w.FAST[Tier.DEVICE]


@pytest.mark.parametrize("most_loss", [0.3, 0.1, 0.0])
def test_a_choice_is_priced_on_its_own_engines(most_loss: float) -> None:
    goal = Goal("latency_mean_ms", max_quality_loss=most_loss)
    job = w.job(w.TWO, goal, STATISTICS)
    profile = w.profile(w.TWO, precisions=("float32", "int8"))
    effects = w.effects(STATISTICS, precisions=("int8",))
    made = Worlds(w.MadeJob(job.bundle, profile, w.TWO, goal, effects))
    best = made.best({})
    priced = made.priced(best.choice, {})
    assert priced.choice.engines == best.choice.engines
    assert made.figure(priced) == pytest.approx(made.figure(best))
