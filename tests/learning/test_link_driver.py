"""Rules over real streams give what they give in memory, bit for bit; also where processes end and come back."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.linked import Linked
from tests.support.quadratics import Quadratic

from tierline.core import catalog
from tierline.core.arrays import Params
from tierline.core.link.content_wire import content_from_rope, content_to_rope
from tierline.core.link.letters import Content, Declined, Head, Letter, Part, Settled
from tierline.core.types import NodeId
from tierline.learning.cast import federation, peers
from tierline.learning.compute import Job
from tierline.learning.driver._gather import Gather
from tierline.learning.driver._relay import PreAdder
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


def test_a_process_that_lost_its_journal_changes_nothing(tmp_path: Path) -> None:
    run = linked("strategy", "fedavg", {"share": 0.6}, tmp_path)
    asyncio.run(asyncio.wait_for(run.run(2), 30))
    for path in tmp_path.glob("1.sqlite*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    asyncio.run(asyncio.wait_for(run.run(6), 30))
    assert_equal(run.states(), in_memory(run, 6))


def test_nodes_on_the_way_add_up_and_the_bits_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Server, a relay without nodes of its own, and two processes below it: one part of each sum arrives."""
    run = linked("strategy", "fedavg", {}, tmp_path)
    nodes = tuple(run.rules())
    run.groups = [nodes[:1], (), nodes[1:4], nodes[4:]]
    run.parents = {2: 1, 3: 1}
    parts: list[int] = []
    add = Gather.add

    def counted(self: Gather, part: Part, now_ns: int) -> None:
        parts.append(len(part.members))
        add(self, part, now_ns)

    monkeypatch.setattr(Gather, "add", counted)
    asyncio.run(asyncio.wait_for(run.run(ROUNDS), 30))
    assert_equal(run.states(), in_memory(run, ROUNDS))
    assert parts == [WORKERS] * ROUNDS


def test_a_part_that_is_wrong_is_found_behind_a_relay() -> None:
    through = frozenset(NodeId(name) for name in "abc")
    adder = PreAdder(lambda receiver: through)

    def letter(sender: str, size: int = 2, seq: int = 1) -> Letter:
        part = Part(np.ones(size, np.int64), 1 << 32, 32, (NodeId(sender),), tuple(sorted(through)))
        head = Head("job", NodeId(sender), NodeId("server"), seq, "turn", 0, "x", "part")
        return Letter(head, content_to_rope(Content(part=part), "test"))

    a, b, c = map(letter, "abc")
    assert adder.take(a) == [] and adder.take(b) == []
    (one,) = adder.take(c)
    part = content_from_rope(one.content).part
    assert part is not None and part.members == ("a", "b", "c") and part.integers.tolist() == [3, 3]
    assert adder.take(a) == []  # sent again: added to the same part again, or released
    declined = Declined("job", one.head.sender, NodeId("server"), one.head.seq, "bad_frame", "no")
    assert adder.note(declined) == ([], [a, b, c])
    assert adder.take(b) == [b]  # apart from now on
    assert adder.note(declined) == ([declined], [])  # of the letter itself: its sender hears of it


@pytest.mark.parametrize("lie", [(250 << 32, 1), ((1 << 128) - 1, 1), (1 << 32, 1 << 62)], ids=str)
def test_a_part_that_says_too_much_goes_alone_and_the_honest_do_not_hear_of_it(lie: tuple[int, int]) -> None:
    """Added to honest ones, 250 samples would pass for a hundred of each."""
    through = frozenset(NodeId(name) for name in "abc")
    adder = PreAdder(lambda receiver: through, max_weight=100)

    def letter(sender: str, weight_units: int, value: int) -> Letter:
        part = Part(np.full(2, value), weight_units, 32, (NodeId(sender),), tuple(sorted(through)))
        head = Head("job", NodeId(sender), NodeId("server"), 1, "turn", 0, "x", "part")
        return Letter(head, content_to_rope(Content(part=part), "test"))

    liar, b, c = letter("a", *lie), letter("b", 10 << 32, 1), letter("c", 10 << 32, 1)
    assert adder.take(b) == []
    assert adder.take(liar) == [liar]
    assert adder.take(c) == []
    assert adder.release(b.head) == [b, c]


def test_what_was_added_is_settled_for_all_and_the_slow_are_not_waited_for() -> None:
    through = frozenset(NodeId(name) for name in "ab")
    adder = PreAdder(lambda receiver: through)

    def letter(sender: str, round: int) -> Letter:
        part = Part(np.ones(2, np.int64), 1 << 32, 32, (NodeId(sender),), ("a", "b", "z"))
        head = Head("job", NodeId(sender), NodeId("server"), 5 + round, "turn", round, "x", "part")
        return Letter(head, content_to_rope(Content(part=part), "test"))

    adder.take(letter("a", 0))
    (one,) = adder.take(letter("b", 0))
    settled = Settled("job", one.head.sender, NodeId("server"), (one.head.seq, 99))
    notes, _ = adder.note(settled)
    assert {(note.sender, note.seqs) for note in notes if isinstance(note, Settled)} == {
        ("a", (5,)), ("b", (5,)), ("a", (99,))
    }  # fmt: skip
    early = letter("a", 1)
    assert adder.take(early) == []
    assert adder.release(early.head) == [early] and adder.release(early.head) == []
    late = letter("b", 1)
    assert adder.take(late) == [late]
