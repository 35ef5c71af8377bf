"""Two Plans at one node, step by step, on a clock turned by hand: who takes what, and when the former one goes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from bench import MS, TickingClock
from tiny_bundle import VIEWS, images, make_tiny_bundle, three_tiers

from tierline.core.bundle import Bundle
from tierline.core.errors import AdmissionRefused, PlanError
from tierline.core.flow import residents as residents_module
from tierline.core.flow.loaded import EngineSettings, estimated_bytes
from tierline.core.flow.node import Node
from tierline.core.link import messages as m
from tierline.core.link.link import Link
from tierline.core.link.session import Session
from tierline.core.plan import Plan, make_plan
from tierline.core.protocols import Outcome
from tierline.core.types import NodeId, SampleId

MINTER = (NodeId("edge"), 5)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return make_tiny_bundle(folder / "a"), make_tiny_bundle(folder / "b", seed=8)


class Bench:
    """One node between a parent and children that are up, and say nothing by themselves."""

    def __init__(self, bundle: Bundle, node: str = "device-left", *, max_memory_bytes: int = 0) -> None:
        self.clock, self.outcomes = TickingClock(), list[Outcome]()
        settings = EngineSettings(inline_ms=1e6, max_memory_bytes=max_memory_bytes)
        self.node = Node(
            node, 5, self.clock, settings, on_outcome=self.outcomes.append, on_answered=_none, on_batch=_none
        )
        self.sent: list[Any] = []
        self.node.parent = self.link("up")
        self.node.minter = MINTER
        self.node.adopt(plan_of(bundle, 1), bundle)
        self.residents, self.turn = self.node.residents, self.node.turn

    def link(self, peer: str) -> Link:
        link = Link(Session(self.node.id, 5), self.clock, self.node.body)
        link.peer, link.is_up = peer, True
        post = link.post

        def record(body: m.Body, *, keep: bool = False) -> bool:
            self.sent.append((peer, body))
            return post(body, keep=keep)

        link.post = record  # type: ignore[method-assign]
        return link

    async def capture(self, seq: int, view: str = "left") -> None:
        image = images(256)[VIEWS.index(view)][seq]
        await self.node.capture(view, seq, image, capture_ns=0, truth=seq, budget_ms=0.0)
        self.node.pump()

    def parts(self) -> list[tuple[int, list[int]]]:
        """Version and numbers of the parts that went up since the last call."""
        found = [(body.plan, [i.seq for i in body.ids]) for _, body in self.sent if isinstance(body, m.Part)]
        self.sent.clear()
        return found


def _none(*_: object) -> None:
    return None


def plan_of(bundle: Bundle, version: int) -> Plan:
    thresholds = {"local": 0.0, "edge": 0.0}
    return make_plan(three_tiers(), bundle.manifest, bundle.digest, version=version, thresholds=thresholds)


@pytest.fixture
def closing() -> Iterator[list[Node]]:
    nodes: list[Node] = []
    yield nodes
    for node in nodes:
        node.close()


def test_a_device_sends_again_what_was_ahead_of_the_new_plan(
    bundles: tuple[Bundle, Bundle], closing: list[Node]
) -> None:
    async def scenario() -> None:
        bench = Bench(bundles[0])
        closing.append(bench.node)
        preparing = asyncio.create_task(bench.turn.prepare(plan_of(bundles[1], 2), bundles[1]))
        await asyncio.sleep(0)
        for seq in range(4):
            await bench.capture(seq)
        await preparing
        assert bench.turn.state().state == "ready"
        assert bench.parts() == [(1, [0]), (1, [1]), (1, [2]), (1, [3])]
        assert bench.turn.activate(2) == 2
        bench.node.pump()
        assert bench.parts() == [(2, [2, 3])]
        assert bench.turn.state().state == "active"
        assert bench.residents.of_sample(SampleId(*MINTER, 1)) is not bench.residents.now
        assert bench.residents.of_sample(SampleId(*MINTER, 2)) is bench.residents.now
        assert bench.node.num_open == 4

    asyncio.run(scenario())


def test_nothing_is_ready_that_could_not_be_run_again(bundles: tuple[Bundle, Bundle], closing: list[Node]) -> None:
    """What was captured before PREPARE is answered first."""

    async def scenario() -> None:
        bench = Bench(bundles[0])
        closing.append(bench.node)
        await bench.capture(0)
        preparing = asyncio.create_task(bench.turn.prepare(plan_of(bundles[1], 2), bundles[1]))
        while bench.residents.next is None:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        assert not preparing.done() and bench.turn.state().state == "loading"
        bench.node.parent_changed(False)
        await preparing
        assert [outcome.reason for outcome in bench.outcomes] == ["no_parent"]

    asyncio.run(scenario())


def test_the_former_plan_goes_when_it_is_idle_and_below_is_settled(
    bundles: tuple[Bundle, Bundle], closing: list[Node]
) -> None:
    async def scenario() -> None:
        bench = Bench(bundles[0], "edge")
        closing.append(bench.node)
        await bench.turn.prepare(plan_of(bundles[1], 2), bundles[1])
        settled: list[bool] = []
        bench.turn.below_is_settled = lambda version: bool(settled)
        bench.turn.activate(0)
        assert not bench.residents.retire(bench.turn.below_is_settled)
        assert len(bench.residents.all()) == 2
        settled.append(True)
        assert bench.residents.retire(bench.turn.below_is_settled)
        assert bench.residents.is_single() and bench.turn.state().state == "settled"
        ends = bench.residents.ended_at(1)
        assert ends == SampleId(NodeId("edge"), 5, 0) and bench.residents.ended_at(2) is None

    asyncio.run(scenario())


def test_a_former_plan_does_not_stay_for_ever(bundles: tuple[Bundle, Bundle], closing: list[Node]) -> None:
    async def scenario() -> None:
        bench = Bench(bundles[0], "edge")
        closing.append(bench.node)
        await bench.turn.prepare(plan_of(bundles[1], 2), bundles[1])
        bench.turn.below_is_settled = lambda version: False
        bench.turn.activate(0)
        bench.clock.advance(residents_module.MAX_LINGER_NS + residents_module.FORCE_AFTER_NS)
        assert bench.residents.retire(lambda version: False)

    asyncio.run(scenario())


def test_a_junction_withholds_what_will_be_sent_again(bundles: tuple[Bundle, Bundle], closing: list[Node]) -> None:
    """Also once the former Plan is gone; its sender hears an acknowledgement, and no refusal of rows."""

    async def scenario() -> None:
        bench = Bench(bundles[0], "edge")
        closing.append(bench.node)
        link = bench.link("device-left")
        bench.node.child_up(link)
        await bench.turn.prepare(plan_of(bundles[1], 2), bundles[1])
        bench.turn.below_is_settled = lambda version: False
        assert bench.turn.activate(0) == 0
        part = m.Part(0, "left", [SampleId(*MINTER, 0)], 1, [1000.0], {})
        for _ in range(2):
            bench.sent.clear()
            bench.node.body(link, part, bench.clock.now_ns(), 0)
            told = [body for peer, body in bench.sent if peer == "device-left"]
            assert [(type(body), tuple(body.ids)) for body in told] == [(m.Refused, ())]
            assert bench.node.num_open == 0
            bench.turn.below_is_settled = lambda version: True
            bench.residents.retire(bench.turn.below_is_settled)
        assert bench.residents.is_single()
        stranger = m.Part(0, "left", [SampleId(*MINTER, 0)], 7, [1000.0], {})
        bench.sent.clear()
        bench.node.body(link, stranger, bench.clock.now_ns(), 0)
        assert [tuple(body.ids) for peer, body in bench.sent if peer == "device-left"] == [(SampleId(*MINTER, 0),)]

    asyncio.run(scenario())


def test_one_placement_of_one_bundle_is_loaded_once(bundles: tuple[Bundle, Bundle], closing: list[Node]) -> None:
    """A Plan that moves Sections elsewhere costs no memory where nothing changes."""

    async def scenario() -> None:
        bench = Bench(bundles[0])
        closing.append(bench.node)
        before = bench.residents.now
        await bench.turn.prepare(plan_of(bundles[0], 2), bundles[0])
        bench.turn.activate(0)
        now = bench.residents.now
        assert before is not None and now is not None
        assert now is not before and now.loaded is before.loaded
        assert bench.residents.is_single(), "nothing was in flight"
        await bench.capture(0)
        assert bench.parts() == [(2, [0])]

    asyncio.run(scenario())


def test_memory_is_admitted_by_estimate_and_confirmed(
    bundles: tuple[Bundle, Bundle], closing: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = bundles
    plan = plan_of(b, 2)
    need = estimated_bytes(b, plan.placement("device-left"))
    used = 100 << 20
    monkeypatch.setattr(residents_module, "resident_bytes", lambda: used)

    async def scenario() -> None:
        for limit, fits in ((used + need, True), (used + need - 1, False)):
            bench = Bench(a, max_memory_bytes=limit)
            closing.append(bench.node)
            prepared = await bench.residents.prepare(plan, b)
            assert (prepared.loaded is not None) is fits
        alone = Bench(a, max_memory_bytes=used - 1)
        closing.append(alone.node)
        with pytest.raises(AdmissionRefused, match=r"engine.max_memory_bytes = \d+ with the present ones gone"):
            await alone.residents.prepare(plan, b)
        with pytest.raises(PlanError, match="no Plan was prepared"):
            alone.residents.activate(None)

    asyncio.run(scenario())


def test_knobs_that_come_during_a_pause_are_kept(
    bundles: tuple[Bundle, Bundle], closing: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = bundles
    used = 100 << 20
    monkeypatch.setattr(residents_module, "resident_bytes", lambda: used)

    async def scenario() -> None:
        bench = Bench(a, max_memory_bytes=used + 1)
        closing.append(bench.node)
        residents = bench.residents
        await residents.prepare(plan_of(b, 2), b)
        residents.activate(None)
        assert residents.now is None and residents.of_sample(SampleId(*MINTER, 9)) is None
        later = msgspec.structs.replace(plan_of(b, 3), max_batch=3)
        assert residents.has_structure(later, b)
        residents.use(later)
        assert residents.retire(lambda version: True)
        await residents.swap()
        assert residents.now is not None and residents.now.plan == later
        assert residents.now.flow.versions >= {3}
        bench.clock.advance(MS)

    asyncio.run(scenario())
