"""Deadlines that follow from when messages came before, in memory and over letters; the late are named and counted."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.learning.test_link_node import SERVER, W0, W1, W2, Bench, part
from tests.support.quadratics import Quadratic

from tierline.core import catalog
from tierline.core.arrays import Params
from tierline.core.errors import ConfigError
from tierline.core.types import NodeId
from tierline.learning.cast import federation, worker_ids
from tierline.learning.driver._arrivals import Arrivals
from tierline.learning.driver.journal import JournalReader
from tierline.learning.driver.memory import Memory
from tierline.learning.driver.world import LinkSpec, World
from tierline.learning.patience import Adaptive
from tierline.learning.rule import Rule

HOW = {"quantile": 0.7, "slack": 2.0, "floor_s": 0.1, "ceiling_s": 9.0}


@pytest.mark.parametrize(
    ("delays", "expected"),
    [((), 9.0), ((0.01,), 0.1), ((0.3, 0.1, 0.2), 0.6), ((0.1, 0.2, 0.3, 0.4, 50.0), 0.8), ((8.0, 8.0), 9.0)],
)
def test_the_deadline_by_hand(delays: tuple[float, ...], expected: float) -> None:
    assert Adaptive(**HOW).after_s(delays) == pytest.approx(expected)


def test_delays_of_the_newest_messages_count_once_each() -> None:
    arrivals, how = Arrivals(), Adaptive(quantile=1.0, slack=1.0, floor_s=0.0)
    arrivals.came((("turn", 0), "x"), W0, 5)  # of no wait that is known
    assert arrivals.within_ns("x", how) == 60 * 10**9
    assert (arrivals.within_ns("x", 0.25), arrivals.within_ns("x", None)) == (250_000_000, None)
    arrivals.opened((("turn", 0), "x"), how, 100, here=[W0])
    arrivals.came((("turn", 0), "x"), W1, 400)
    arrivals.came((("turn", 0), "x"), W1, 9000)
    assert arrivals.within_ns("x", how) == 300
    for round in range(1, 301):
        arrivals.opened((("turn", round), "x"), how, 1000)
        arrivals.came((("turn", round), "x"), W1, 1200)
    assert arrivals.within_ns("x", how) == 200


@pytest.mark.parametrize("name", ["fedavg", "median"])
def test_a_simulated_server_learns_how_long_to_wait(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tierline.learning")
    nodes = worker_ids(4)
    rules = federation(name, 4, {"within_s": HOW})
    x = Params.from_arrays({"x": np.ones(4, np.float32)})
    up = {(me, SERVER): LinkSpec(0.1 * (i + 1)) for i, me in enumerate(nodes)} | {(nodes[3], SERVER): LinkSpec(8.0)}
    trainers = {me: Quadratic(np.ones(4), np.full(4, i)) for i, me in enumerate(nodes)}
    star = catalog.make("topology", "star")
    driver = Memory(rules, trainers, star, x, lr=lambda round: 0.1, world=World(link_of=up))
    ends = []
    for round in range(1, 6):
        driver.run(round, of=[SERVER])
        ends.append(driver.time_s)
    # First all are waited for; then the slowest of 70 % comes 0.2 s after the first, and twice that is waited.
    assert np.diff([0.0, *ends]) == pytest.approx([8.0, 0.5, 0.5, 0.5, 0.5])
    driver.run(5)
    assert driver.counts.num_late == 4
    assert sum("worker-3" in line and "too late" in line for line in caplog.messages) == 4


def fedavg() -> Mapping[NodeId, Rule]:
    return federation("fedavg", 3, {"within_s": HOW})


def test_a_linked_server_learns_how_long_to_wait_and_names_the_late(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tierline.learning")
    bench, second = Bench(SERVER, fedavg, "star", tmp_path), 10**9
    bench.node.begin(0)
    assert bench.node.deadline_ns is None
    for me, at_s in ((W0, 3), (W1, 4), (W2, 5)):
        bench.send(me, part(np.ones(4), me), now_ns=at_s * second)
        assert me == W2 or bench.node.deadline_ns == 12 * second  # 9 s after the first
    assert bench.node.round == 1
    bench.node.begin(10 * second)
    bench.send(W1, part(np.ones(4), W1), round=1, now_ns=20 * second)
    assert bench.node.deadline_ns == 24 * second  # 0, 1 and 2 s: twice the last of 70 %
    bench.node.tick(24 * second)
    assert bench.node.round == 2
    bench.send(W2, part(np.ones(4), W2), round=1, now_ns=27 * second)
    bench.send(W2, part(np.ones(4), W2), round=1, now_ns=27 * second)  # said again: it is late once
    assert [line for line in caplog.messages if "too late" in line] == [
        "server: worker-2: part 'fitted' of turn 1 for server came too late: dropped"
    ]
    bench.node.begin(30 * second)
    bench.send(W0, part(np.ones(4), W0), round=2, now_ns=30 * second)
    assert bench.node.deadline_ns == 34 * second  # 0, 0, 1, 2 and 7 s
    for me in (W1, W2):
        bench.send(me, part(np.ones(4), me), round=2, now_ns=31 * second)
    reader = JournalReader(tmp_path / "node.sqlite")
    assert [document["num_late"] for _, _, _, document in reader.reports(0)] == [0, 0, 1]
    reader.close()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("sometimes", 'give seconds, "adaptive", or a table'),
        (-1.0, "give seconds"),
        ({"quantil": 1.0}, "no option 'quantil'; nearest is \"quantile\""),
        ({"quantile": 2.0}, r"quantile = 2.0 must be in \(0, 1\]"),
        ({"floor_s": 9.0, "ceiling_s": 1.0}, "floor_s = 9.0 <= ceiling_s = 1.0"),
    ],
)
def test_other_deadlines_are_refused(option: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        federation("fedavg", 3, {"within_s": option})
    assert federation("fedavg", 3, {"within_s": "adaptive"})
