"""Drift is told once it lasts, and does not flap: traces of a round trip against a Plan chosen for 40 to 60 ms."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from tierline.cloud.drift import Drift, measured

RANGES = {"rtt_ms:edge": (40.0, 60.0)}


def told(trace: list[float], *, versions: dict[int, int] | None = None) -> list[int]:
    """Seconds at which word was given for one measurement per second."""
    drift, version, found = Drift(hold_s=10, rest_s=60), 1, []
    for second, value in enumerate(trace):
        version = (versions or {}).get(second, version)
        if drift.look(float(second), version, RANGES, {"rtt_ms:edge": value}):
            found.append(second)
    return found


def test_a_step_that_lasts_is_told_once_until_the_rest_is_over() -> None:
    assert told([50.0] * 20 + [90.0] * 40) == [30]
    assert told([50.0] * 20 + [90.0] * 100) == [30, 90]
    assert told([50.0] * 20 + [20.0] * 40) == [30]


def test_peaks_and_noise_are_not() -> None:
    assert told([50.0] * 20 + [500.0] * 9 + [50.0] + [500.0] * 9 + [50.0] * 20) == []
    rng = random.Random(3)
    assert told([rng.gauss(50.0, 8.0) for _ in range(2000)]) == []
    assert told([64.0] * 300) == [], "within the margin"
    assert told([60.0 + 8.0 * math.sin(n / 2) for n in range(600)]) == [], "to and fro over the edge"


def test_slow_changes_are_told_no_more_often_than_rests_allow() -> None:
    seconds = told([50.0 + 40.0 * math.sin(n / 60) for n in range(3600)])
    assert 0 < len(seconds) <= 3600 / 60
    assert min(b - a for a, b in itertools.pairwise(seconds)) >= 60


def test_another_plan_begins_anew() -> None:
    assert told([90.0] * 9 + [90.0] * 9, versions={9: 2}) == []


def test_what_is_not_measured_changes_nothing() -> None:
    drift = Drift(hold_s=10, rest_s=60)
    assert drift.look(0, 1, RANGES, {"rtt_ms:edge": 90.0, "other": 1.0}) == []
    assert drift.look(5, 1, RANGES, {}) == []
    (word,) = drift.look(10, 1, RANGES, {"rtt_ms:edge": 90.0})
    assert word.told() == "rtt_ms:edge is 90, the Plan holds for 40 to 60"


def test_a_world_that_goes_to_and_fro_is_followed_ever_more_slowly() -> None:
    """A Plan for each of two worlds, 20 s each: word after word, but after rests of 60, 120, 240, ... 960 s."""
    drift, version, since, seconds = Drift(hold_s=10, rest_s=60), 1, 0, []
    ranges = {1: (40.0, 60.0), 2: (180.0, 220.0)}
    for second in range(7200):
        rtt_ms = 50.0 if second // 20 % 2 else 200.0
        if drift.look(float(second), version, {"rtt_ms:edge": ranges[version]}, {"rtt_ms:edge": rtt_ms}):
            version, since = 3 - version, second
            seconds.append(since)
    gaps = [b - a for a, b in itertools.pairwise(seconds)]
    assert gaps[0] >= 60 and gaps[1] >= 120 and gaps[2] >= 240 and gaps[4] >= 960
    assert len(seconds) <= 12


def test_several_that_have_moved_far_are_out_together() -> None:
    ranges = {"rtt_ms:edge": (5.0, 500.0), "up_mbps:edge": (0.1, 100.0)}
    base = {"rtt_ms:edge": 50.0, "up_mbps:edge": 5.0}

    def told_of(*worlds: dict[str, float]) -> list[str]:
        drift, found = Drift(hold_s=10, rest_s=60), list[str]()
        for second in range(20):
            world = worlds[second % len(worlds)]
            found += [x.name for x in drift.look(float(second), 1, ranges, world, base)]
        return found

    wifi = {"rtt_ms:edge": 10.0, "up_mbps:edge": 20.0}
    assert told_of(wifi) == ["rtt_ms:edge", "up_mbps:edge"]
    assert told_of(*({name: value} for name, value in wifi.items())) == ["up_mbps:edge"], "measured in turns"
    assert told_of({**wifi, "rtt_ms:edge": 50.0}) == [], "one alone is within its range"
    assert told_of({"rtt_ms:edge": 60.0, "up_mbps:edge": 6.0}) == [], "neither is far"
    assert told_of(wifi, {**wifi, "up_mbps:edge": 5.0}) == [], "to and fro"


def test_after_a_quiet_time_the_first_rest_is_back() -> None:
    assert told([200.0] * 12 + [50.0] * 50 + [200.0] * 15 + [50.0] * 400 + [200.0] * 80) == [10, 72, 487]
    late = told([200.0] * 12 + [50.0] * 50 + [200.0] * 15 + [50.0] * 900 + [200.0] * 80)
    assert late == [10, 72, 987, 1047]


def test_links_and_speeds_come_from_the_status() -> None:
    way = {"rtt_ms": 48.5, "up_mbps": 1.1}
    status = {
        "cloud": {"connected": True, "links": {"edge": {"rtt_ms": 3.0}}, "sections": {"1": {"rows": 4, "ms": 20.0}}},
        "edge": {"connected": True, "way": way, "sections": {"0": {"rows": 1, "ms": 6.0}, "1": {"rows": 1, "ms": 2.0}}},
        "new": {"connected": True, "way": {}},
        "away": {"connected": False, "way": way},
        "busy": {"connected": True, "way": way, "profiling": "3/9 a..b"},
        "builds": {"connected": True, "sections": {"0": {"rows": 1, "ms": 40.0}}, "engines": {"s": "building 10 s"}},
        "odd": {},
        "odder": {"connected": True, "way": {"rtt_ms": "long", "up_mbps": True}, "sections": {"0": 3}},
        "oddest": {"connected": True, "way": [3], "sections": [4]},
    }
    expected = {node: {"0": {1: 2.0}, "1": {1: 2.0}} for node in status}
    expected["cloud"] = {"1": {1: 2.0, 8: 9.0}}
    assert measured(status) == {"rtt_ms:edge": 48.5, "up_mbps:edge": 1.1}
    found = measured(status, expected)
    assert found == {
        "rtt_ms:edge": 48.5,
        "up_mbps:edge": 1.1,
        "slower:edge": pytest.approx(2.0),
        "slower:cloud": pytest.approx(20.0 / 5.0),
    }


@pytest.mark.parametrize(("rows", "ms"), [(1, 2.0), (2, 3.0), (8, 9.0), (16, 18.0)])
def test_a_batch_between_measured_sizes_is_on_the_line(rows: int, ms: float) -> None:
    status = {"a": {"connected": True, "sections": {"0": {"rows": rows, "ms": ms}}}}
    assert measured(status, {"a": {"0": {1: 2.0, 8: 9.0}}}) == {"slower:a": pytest.approx(1.0)}
