"""Processes over real gRPC, of which some are killed: the others go on, and nothing is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

DEVICES = [f"device-{i}" for i in range(6)]


@pytest.fixture(scope="module")
def lasting(start: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A fleet that goes on; most samples climb to the cloud."""
    with start(
        tmp_path_factory.mktemp("lasting"), query="?loop=true&rate=100", thresholds={"local": 0.1, "edge": 0.1}
    ) as world:
        world.until_answered(20)
        yield world


def is_whole(record: dict[str, Any]) -> bool:
    return record["num_views"] == 6 and not record["degraded"]


def until_whole(world: Any, devices: list[str], exits: set[str]) -> None:
    """Every device has, from now on, an answer made of all views at each of these exits."""
    marks = world.marks()

    def seen(device: str) -> bool:
        return exits <= {r["exit"] for r in world.news(device, marks[device]) if is_whole(r)}

    world.until(f"whole answers at {sorted(exits)}", lambda: all(map(seen, devices)))


def assert_none_lost(world: Any, devices: list[str]) -> None:
    """Every sample that was followed by another was answered, once."""
    for device in devices:
        seen = Counter(r["id"]["seq"] for r in world.news(device))
        assert sorted(seen) == list(range(len(seen))), device
        assert set(seen.values()) == {1}, device


def test_a_killed_device_is_not_waited_for(lasting: Any) -> None:
    others = DEVICES[:-1]
    lasting.fleet.kill("device-5")
    marks = lasting.marks()

    def five(device: str) -> bool:
        last = [r for r in lasting.news(device, marks[device]) if r["num_views"] == 5 and not r["degraded"]]
        return len(last) >= 30 and {"cloud"} <= {r["exit"] for r in last}

    lasting.until("answers of five views", lambda: all(map(five, others)))
    assert_none_lost(lasting, others)
    assert all(r["num_views"] >= 5 for d in others for r in lasting.news(d, marks[d]))
    lasting.fleet.restart("device-5")
    until_whole(lasting, others, {"cloud"})


def test_a_killed_edge_node_leaves_devices_answering(lasting: Any) -> None:
    others = DEVICES[:-1]  # the last was restarted, and counts anew
    pids = {d: lasting.fleet.pids()[d] for d in DEVICES}
    lasting.fleet.kill("edge")
    marks = lasting.marks()

    def alone(device: str) -> bool:
        return len([r for r in lasting.news(device, marks[device]) if r["reason"] == "no_parent"]) >= 20

    lasting.until("answers without a parent", lambda: all(map(alone, DEVICES)))
    for device in DEVICES:
        lone = [r for r in lasting.news(device, marks[device]) if r["reason"] == "no_parent"]
        assert {(r["exit"], r["num_views"], r["degraded"]) for r in lone} == {("local", 1, True)}
    lasting.fleet.restart("edge")
    until_whole(lasting, DEVICES, {"cloud"})
    assert_none_lost(lasting, others)
    assert {d: lasting.fleet.pids()[d] for d in DEVICES} == pids


def test_a_killed_cloud_leaves_the_edge_node_answering(lasting: Any) -> None:
    pids = {n: p for n, p in lasting.fleet.pids().items() if n != "cloud"}
    until_whole(lasting, DEVICES, {"cloud"})
    lasting.fleet.kill("cloud")
    marks = lasting.marks()

    def by_edge(device: str) -> bool:
        found = [r for r in lasting.news(device, marks[device]) if r["reason"] == "no_parent"]
        return len(found) >= 20

    lasting.until("answers of the edge node alone", lambda: all(map(by_edge, DEVICES)))
    for device in DEVICES:
        found = [r for r in lasting.news(device, marks[device]) if r["reason"] == "no_parent"]
        assert {(r["exit"], r["num_views"]) for r in found} == {("edge", 6)}
    lasting.fleet.restart("cloud")
    until_whole(lasting, DEVICES, {"cloud"})
    assert_none_lost(lasting, DEVICES[:-1])
    assert {n: p for n, p in lasting.fleet.pids().items() if n != "cloud"} == pids
