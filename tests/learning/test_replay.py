"""The journal of who took part, gone by in memory, gives the states that a run over real streams came to."""

from __future__ import annotations

import asyncio
import time
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
from tierline.learning.cast import SERVER, federation, worker_ids
from tierline.learning.compute import Fitted, Job
from tierline.learning.driver.journal import JournalReader
from tierline.learning.driver.memory import Memory
from tierline.learning.driver.world import LinkSpec, Participants, World
from tierline.learning.effects import Effects, reduce
from tierline.learning.errors import Deadlock
from tierline.learning.half import Half
from tierline.learning.rule import Rule, State, Turn

X = Params.from_arrays({"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float32)})
WORKERS = worker_ids(4)


class Late(Quadratic):
    """Fits only once the journal of the first office says who took part in some turn: without this one, then."""

    journal: Path

    def fit(self, start: Params, job: Job) -> Fitted:
        deadline = time.monotonic() + 20
        while not participants(self.journal):
            assert time.monotonic() < deadline, "no turn has ended"
            time.sleep(0.002)
        return super().fit(start, job)


def participants(journal: Path) -> Participants:
    reader = JournalReader(journal)
    try:
        return reader.participants()
    finally:
        reader.close()


def run_of(rules: Any, folder: Path, last: type[Quadratic] = Quadratic) -> Linked:
    draw = np.random.default_rng(7)
    trainers = {
        me: kind(draw.uniform(0.5, 1.5, 10), draw.normal(size=10), num_samples=i + 1, noise=0.1)
        for i, (me, kind) in enumerate(zip(WORKERS, [Quadratic, Quadratic, Quadratic, last], strict=True))
    }
    for trainer in trainers.values():
        if isinstance(trainer, Late):
            trainer.journal = folder / "0.sqlite"
    groups = [[SERVER], list(WORKERS[:2]), list(WORKERS[2:])]
    star = catalog.make("topology", "star")
    return Linked(rules, trainers, star, X, folder, groups, job=Job(num_steps=2))


def replayed(
    run: Linked, heard: Participants, rounds: int, world: World | None = None, *, of: Any = None
) -> dict[NodeId, State]:
    rules = run.rules()
    driver = Memory(
        rules, run.trainers, run.topology, X, lr=lambda round: run.lr, job=run.job, world=world, replay=heard
    )
    driver.run(rounds, of=of)
    return {me: rule.state() for me, rule in rules.items() if of is None or me in of}


def heard_in(run: Linked) -> Participants:
    found: dict[Any, frozenset[NodeId]] = {}
    for index in range(len(run.groups)):
        found |= participants(run.folder / f"{index}.sqlite")
    return found


def assert_equal(states: Mapping[NodeId, State], expected: Mapping[NodeId, State]) -> None:
    for me, state in expected.items():
        for name, value in state.items():
            assert np.asarray(states[me][name]).tobytes() == np.asarray(value).tobytes(), (me, name)


RULES = [
    ("fedavg", {"quorum": 2}),
    ("fedavg", {"within_s": 0.0}),
    ("median", {"quorum": 3}),
    ("scaffold", {"quorum": 2, "share": 0.75}),
]


@pytest.mark.parametrize(("name", "options"), RULES)
def test_who_took_part_gives_the_same_states_again(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    run = run_of(lambda: federation(name, 4, options), tmp_path, last=Late)
    asyncio.run(asyncio.wait_for(run.run(6), 30))
    heard = heard_in(run)
    assert len(heard) >= 6 and any(len(members) < 4 for members in heard.values())
    # The slowest links of the replay are those of whom the run heard first: times do not count.
    slow = {(me, SERVER): LinkSpec(0.1 * (i + 1)) for i, me in enumerate(WORKERS)}
    for world in (None, World(link_of=slow)):
        assert_equal(replayed(run, heard, 6, world), run.states())


def test_a_run_without_rounds_is_replayed_too(tmp_path: Path) -> None:
    run = run_of(lambda: federation("fedbuff", 4, {"buffer": 3}), tmp_path)

    async def go() -> None:
        async with run.office(0) as server, run.office(1) as one, run.office(2) as two:
            others = [asyncio.create_task(office.run(run.until(6, i, of=()))) for i, office in ((1, one), (2, two))]
            await server.run(run.until(6, 0))
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    asyncio.run(asyncio.wait_for(go(), 30))
    expected = {SERVER: run.states()[SERVER]}
    assert_equal(replayed(run, heard_in(run), 6, of=[SERVER]), expected)


class Everyone(Half):
    """All add, and all want a sum that closes with two of them."""

    kept = ("x",)

    def turn(self, t: Turn) -> Effects[None]:
        got = yield from reduce("s", float(t.nodes.index(t.me)) * self.x, t.nodes, quorum=2)
        self.x = got.sum


def test_a_sum_that_many_want_closes_as_the_first_of_them_had_it() -> None:
    rules: dict[NodeId, Rule] = {NodeId(name): Everyone() for name in "abcd"}
    a, b, c, d = rules
    heard: Participants = {(a, "turn", 0, 0): frozenset([b, d]), (a, "turn", 1, 0): frozenset([a, c, d])}
    complete = catalog.make("topology", "complete")
    driver = Memory(rules, {}, complete, X, lr=lambda round: 0.1, replay=heard)
    driver.run(2)
    for rule in rules.values():
        assert np.array_equal(rule.x.flat, X.flat * (1 + 3) * (0 + 2 + 3))
    assert c in heard[a, "turn", 1, 0]


@pytest.mark.parametrize("name", ["fedavg", "median"])
def test_a_wait_that_had_not_ended_does_not_end(name: str, tmp_path: Path) -> None:
    run = run_of(lambda: federation(name, 4, {"quorum": 2}), tmp_path)
    with pytest.raises(Deadlock, match=r"server in turn 0 waits for .*fitted"):
        replayed(run, {}, 1)
