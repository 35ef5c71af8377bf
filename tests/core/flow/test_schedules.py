"""Whatever happens in whatever order: one verdict per part, ledgers that add up, and memory that does not grow."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from bench import MS, NUM_SAMPLES, Bench, device_outputs, oracle_views
from tiny_bundle import VIEWS

from tierline.core.bundle import Bundle
from tierline.core.coding import codec_for
from tierline.core.flow import answers, attendance
from tierline.core.flow.levels import engine_maker
from tierline.core.flow.oracle import Oracle
from tierline.core.link import messages as m
from tierline.core.plan import Join
from tierline.core.telemetry.ledger import SPAN_INDEX

BY = {"none": Join(by="none"), "sequence": Join(window_ms=50, min_views=2)}


class World:
    """Devices and a parent that do what they like to a junction with views of three children."""

    def __init__(self, bundle: Bundle, seed: int, join: Join) -> None:
        self.rng = random.Random(seed)
        thresholds = {"local": 0.45, "edge": 0.4}
        mode = self.rng.choice(["eager", "on_demand"])
        self.bench = Bench(
            bundle, thresholds=thresholds, join=join, mode=mode, tick_ns=10, max_batch=self.rng.choice([1, 3, 64])
        )
        self.bench.port.deferred = self.rng.random() < 0.5
        self.bench.connect_devices()
        self.todo = {view: list(range(40)) for view in VIEWS}
        for todo in self.todo.values():
            self.rng.shuffle(todo)
        self.sent: Counter[tuple[str, int]] = Counter()
        self.told: Counter[tuple[str, int]] = Counter()
        self.lost: set[tuple[str, int]] = set()
        """Their device was away when, or after, they were sent: nobody hears the verdict."""
        self.pulls: list[tuple[str, m.Pull]] = []
        self.parts: list[m.Part] = []

    def run(self) -> None:
        for _ in range(400):
            self.rng.choice(
                [self.send, self.send, self.send, self.pull, self.parent, self.engine, self.wait, self.wait, self.flap]
            )()
            self.listen()
        for view in VIEWS:
            while self.todo[view]:
                self.send(view)
        self.bench.step(100_000)
        self.bench.port.finish()
        self.bench.step(100_000)
        self.listen()

    def send(self, view: str = "") -> None:
        view = view or self.rng.choice(VIEWS)
        if not self.todo[view]:
            return
        seq = self.todo[view].pop()
        eager = self.rng.random() < 0.5
        self.bench.send(view, seq, eager=eager, budget_ms=self.rng.choice([0.0, 20.0, 1000.0, 5000.0]))
        self.sent[view, seq] += 1
        if f"device-{view}" not in self.bench.port.children:
            self.lost.add((view, seq))

    def pull(self) -> None:
        if not self.pulls:
            return
        child, pull = self.pulls.pop(self.rng.randrange(len(self.pulls)))
        gone = [i for i in pull.ids if self.rng.random() < 0.2]
        held = [i for i in pull.ids if i not in gone]
        feature = None
        if held:
            rows = device_outputs(self.bench.bundle, pull.name, [i.seq for i in held])[1]
            feature = codec_for("bitplane").encode(rows)
        self.bench.flow.features(child, m.Features(0, pull.name, held, feature, gone))

    def parent(self) -> None:
        flow, port = self.bench.flow, self.bench.port
        chance = self.rng.random()
        if chance < 0.15:
            port.parent = not port.parent
            if not port.parent:
                flow.parent_down()
        elif self.parts:
            part = self.parts.pop(self.rng.randrange(len(self.parts)))
            if chance < 0.3:
                flow.refused(m.Refused(part.level, part.name, part.ids, "admission", "full"))
            else:
                flow.verdict(self.bench.reply(part, residence_ns=0), self.bench.clock.now_ns())
                if chance < 0.4:
                    flow.verdict(self.bench.reply(part), self.bench.clock.now_ns())

    def engine(self) -> None:
        self.bench.port.fails = self.rng.random() < 0.1
        self.bench.port.finish()
        self.bench.port.fails = False

    def wait(self) -> None:
        self.bench.step(self.rng.choice([0, 0, 0, 1, 10, 60, 500]))

    def flap(self) -> None:
        child = f"device-{self.rng.choice(VIEWS)}"
        if child not in self.bench.port.children:
            self.bench.connect(child)
        elif self.rng.random() < 0.2:
            self.bench.disconnect(child)
            view = child.removeprefix("device-")
            self.lost |= {key for key in self.sent if key[0] == view and not self.told[key]}

    def listen(self) -> None:
        for _, verdict in self.bench.port.take_down(m.Verdict):
            for row, id_ in enumerate(verdict.ids):
                self.told[verdict.name, id_.seq] += 1
                residence, *spans = verdict.hops[0].rows_ns[row]
                above = verdict.hops[1].rows_ns[row][0] if len(verdict.hops) > 1 else 0
                assert min(spans) >= 0
                assert sum(spans) + above <= residence
        self.pulls += self.bench.port.take_down(m.Pull)
        self.parts += self.bench.port.take_up(m.Part)
        assert not self.bench.port.down and not self.bench.port.up


@pytest.mark.parametrize("by", ["sequence", "none"])
@pytest.mark.parametrize("seed", range(12))
def test_every_part_is_told_exactly_once(tiny_bundle: Bundle, seed: int, by: str) -> None:
    world = World(tiny_bundle, seed, BY[by])
    if by == "none":
        # Without a join an id belongs to one view.
        for n, view in enumerate(VIEWS):
            world.todo[view] = [1000 * n + seq for seq in world.todo[view]]
    world.run()
    assert world.bench.flow.num_open == 0
    assert sum(world.sent.values()) == 120 and set(world.sent.values()) == {1}
    for key in world.sent:
        assert world.told[key] == 1 or (key in world.lost and world.told[key] == 0), key
    # Nearly all of them could be told, or this test says nothing.
    assert len(world.lost) < 100


def test_a_quiet_world_answers_as_the_oracle(tiny_bundle: Bundle) -> None:
    thresholds = {"local": 0.45, "edge": 0.4}
    bench = Bench(tiny_bundle, thresholds=thresholds)
    bench.connect_devices()
    exits, _ = Oracle(tiny_bundle, engine_maker("onnxruntime")).answers(oracle_views(tiny_bundle), thresholds)
    got = {}
    for seq in range(NUM_SAMPLES):
        bench.send_all(seq)
        bench.step()
        bench.answer_pulls()
        bench.step()
        for part in bench.port.take_up(m.Part):
            bench.flow.verdict(bench.reply(part), bench.clock.now_ns())
        bench.step()
        got.update(bench.verdicts())
    assert [got["left", seq][0] for seq in range(NUM_SAMPLES)] == exits
    assert set(exits) == {"local", "edge", "cloud"}


def test_the_residual_is_small(tiny_bundle: Bundle) -> None:
    """With a clock that moves at every look, what is not charged to a span is a few looks."""
    bench = Bench(tiny_bundle, tick_ns=10)
    bench.connect_devices()
    for view in VIEWS:
        bench.send(view, 0)
        bench.step(7)
    bench.clock.advance(3 * MS)
    bench.answer_pulls()
    bench.step(5)
    bench.clock.advance(20 * MS)
    (part,) = bench.port.take_up(m.Part)
    bench.flow.verdict(bench.reply(part, residence_ns=15 * MS), bench.clock.now_ns())
    bench.flow.pump()
    verdicts: dict[str, Any] = {body.name: body for _, body in bench.port.take_down(m.Verdict)}
    for view, waited_ms in zip(VIEWS, (26, 19, 12), strict=True):
        residence, *spans = verdicts[view].hops[0].rows_ns[0]
        residual = residence - sum(spans) - 15 * MS
        assert 0 <= residual < 1000, view
        assert spans[SPAN_INDEX["queue"]] == pytest.approx(waited_ms * MS, abs=1000), view
        assert spans[SPAN_INDEX["pull"]] == pytest.approx(3 * MS, abs=1000)
        assert spans[SPAN_INDEX["send"]] == pytest.approx(5 * MS, abs=1000)


def test_memory_is_bounded_by_what_is_in_flight(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MAX_ANSWERED", 100)
    bench = Bench(tiny_bundle, thresholds={"local": 0.45, "edge": 0.4}, mode="eager")
    bench.connect_devices()
    for first in range(0, 20_000, 20):
        seqs = range(first, first + 20)
        if first % 100 == 0:
            bench.send("left", *seqs, eager=True)  # two views never come
        else:
            bench.send_all(*seqs, eager=True)
        bench.step()
        for part in bench.port.take_up(m.Part):
            bench.flow.verdict(bench.reply(part), bench.clock.now_ns())
        bench.step(1)
        bench.port.down.clear()
    bench.step(300)
    for part in bench.port.take_up(m.Part):
        bench.flow.verdict(bench.reply(part), bench.clock.now_ns())
    bench.step()
    flow = bench.flow
    assert flow.num_open == 0 and not flow._joined and not flow._climb._waiting and not flow._climb._busy
    assert len(flow._answers._given) == 100
    assert not flow._answers._replier._rows
    assert len(flow._timers._heap) <= 1025
    bench.step(10_000)
    assert flow.next_deadline_ns() is None


def test_grace_is_short_enough_for_a_budget() -> None:
    assert attendance.STARTUP_GRACE_NS <= 5000 * MS
