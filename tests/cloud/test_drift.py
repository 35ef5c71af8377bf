"""Drift is told once it lasts, and does not flap: traces of a round trip against a Plan chosen for 40 to 60 ms."""

from __future__ import annotations

import itertools
import math
import random

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
    assert word == "rtt_ms:edge is 90, the Plan was chosen for 40 to 60"


def test_round_trips_come_from_the_status() -> None:
    status = {
        "cloud": {"connected": True, "links": {"edge": {"rtt_ms": 3.0}}},
        "edge": {"connected": True, "links": {"parent": {"rtt_ms": 48.5}}},
        "new": {"connected": True, "links": {"parent": {"rtt_ms": 0.0}}},
        "away": {"connected": False, "links": {"parent": {"rtt_ms": 48.5}}},
        "odd": {},
        "odder": {"connected": True, "links": {"parent": {"rtt_ms": "long"}}},
        "oddest": {"connected": True, "links": [3]},
    }
    assert measured(status) == {"rtt_ms:edge": 48.5}
