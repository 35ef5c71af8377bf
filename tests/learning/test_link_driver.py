"""Rules over real streams give what they give in memory, bit for bit; also where processes end and come back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.linked import Linked
from tests.support.quadratics import Quadratic

from tierline.core import catalog
from tierline.core.arrays import Params
from tierline.core.types import NodeId
from tierline.learning.cast import federation, peers
from tierline.learning.compute import Job
from tierline.learning.driver.memory import Memory
from tierline.learning.rule import Rule, State

ROUNDS, WORKERS = 4, 5
X = Params.from_arrays({"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float32)})

RULES = [
    ("strategy", "fedavg", {"share": 0.6}),
    ("strategy", "scaffold", {}),
    ("strategy", "fednova", {}),
    ("strategy", "fedopt", {}),
    ("strategy", "dynamic_averaging", {"delta": 0.5}),
    ("gossip", "d_psgd", {"form": "adapt"}),
    ("gossip", "d_psgd", {}),
]


def cast(room: str, name: str, options: Mapping[str, Any]) -> dict[NodeId, Rule]:
    return federation(name, WORKERS, options) if room == "strategy" else peers(name, WORKERS, options)


def linked(room: str, name: str, options: Mapping[str, Any], folder: Path) -> Linked:
    def rules() -> dict[NodeId, Rule]:
        return cast(room, name, options)

    nodes = tuple(rules())
    draw = np.random.default_rng(7)
    trainers = {
        me: Quadratic(draw.uniform(0.5, 1.5, 10), draw.normal(size=10), num_samples=i + 1, noise=0.1)
        for i, me in enumerate(nodes)
    }
    groups = [nodes[:1], nodes[1:4], nodes[4:]] if room == "strategy" else [(), nodes[:2], nodes[2:]]
    topology = catalog.make("topology", "star" if room == "strategy" else "exponential")
    return Linked(rules, trainers, topology, X, folder, groups, job=Job(num_steps=2))


def in_memory(run: Linked, rounds: int) -> dict[NodeId, State]:
    driver = Memory(run.rules(), run.trainers, run.topology, X, lr=lambda round: run.lr, job=run.job)
    driver.run(rounds)
    return driver.states()


def assert_equal(states: Mapping[NodeId, State], expected: Mapping[NodeId, State]) -> None:
    assert states.keys() == expected.keys()
    for me, state in expected.items():
        assert states[me].keys() == state.keys()
        for name, value in state.items():
            assert np.asarray(states[me][name]).tobytes() == np.asarray(value).tobytes(), (me, name)


@pytest.mark.parametrize(("room", "name", "options"), RULES)
def test_streams_give_what_memory_gives(room: str, name: str, options: dict[str, Any], tmp_path: Path) -> None:
    run = linked(room, name, options, tmp_path)
    asyncio.run(asyncio.wait_for(run.run(ROUNDS), 30))
    assert_equal(run.states(), in_memory(run, ROUNDS))


@pytest.mark.parametrize(("room", "name", "options"), RULES)
def test_processes_that_end_at_any_moment_change_nothing(
    room: str, name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    run = linked(room, name, options, tmp_path)

    async def crash(rng: np.random.Generator) -> None:
        done = asyncio.Event()
        finished: set[int] = set()

        async def process(index: int) -> None:
            async with run.office(index) as office:
                await office.run(run.until(ROUNDS, index))
                finished.add(index)
                if len(finished) == len(run.groups):
                    done.set()
                await done.wait()

        processes = [asyncio.create_task(process(index)) for index in range(len(run.groups))]
        for index in rng.integers(len(run.groups), size=8).tolist():
            await asyncio.sleep(float(rng.uniform(0.0, 0.06)))
            processes[index].cancel()
            await asyncio.gather(processes[index], return_exceptions=True)
            finished.discard(index)
            if not done.is_set():
                processes[index] = asyncio.create_task(process(index))
        await asyncio.gather(*(p for p in processes if not p.cancelled()))

    asyncio.run(asyncio.wait_for(crash(np.random.default_rng(3)), 40))
    assert_equal(run.states(), in_memory(run, ROUNDS))
