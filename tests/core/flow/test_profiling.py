"""A node measures itself: what it cannot do is noted, orders and reports of nodes below it pass through."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.support.onnx_models import conv_relu, relu
from tests.support.tiny_bundle import three_tiers

from tierline.core.bundle import Bundle, digest_of
from tierline.core.clock import MonotonicClock
from tierline.core.errors import BadFrame, LinkUnavailable, PeerRejected
from tierline.core.flow.node import EngineSettings, Node
from tierline.core.flow.orders import Order, OrderedHead, OrderedPiece, Report
from tierline.core.flow.profiling import Profiler
from tierline.core.link.link import Link
from tierline.core.link.probe import LinkRates
from tierline.core.link.session import Session
from tierline.core.plan import make_plan
from tierline.core.types import Tier


def npy(rows: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, rows)
    return buffer.getvalue()


ROWS = npy(np.random.default_rng(1).normal(size=(4, 1, 8, 8)).astype(np.float32))
IMAGES = npy(np.random.default_rng(1).integers(0, 256, (4, 1, 8, 8), np.uint8))
CONV, TOP, WRONG = conv_relu(), relu("b", 4, 8, 8), relu("b", 5)
FILES = {digest_of(raw): raw for raw in (ROWS, IMAGES, CONV, TOP, WRONG, b"no model")}


@dataclass
class Parent:
    """Has all files; a link that is slow or away."""

    fetched: list[str] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    num_away: int = 0

    async def fetch(self, digest: str) -> bytes:
        if digest not in FILES:
            raise LinkUnavailable("lost")
        self.fetched.append(digest)
        return FILES[digest]

    async def report(self, document: bytes) -> None:
        if self.num_away:
            self.num_away -= 1
            raise LinkUnavailable("away")
        self.reports.append(msgspec.json.decode(document, type=Report))

    async def probe(self) -> LinkRates:
        return LinkRates(50_000_000, 5e6, 6e6, 0.5, "probe")


def order(**changes: Any) -> Order:
    made = Order(
        "7",
        "edge",
        digest_of(ROWS),
        digest_of(IMAGES),
        (
            OrderedPiece("input", "a", "float32", digest_of(CONV)),
            OrderedPiece("a", "output", "float32", digest_of(TOP)),
        ),
        (OrderedHead("early", "a", "float32", digest_of(TOP)),),
        ("raw", "jpeg"),
        batches=(1, 3),
        warm_s=0.01,
        run_s=0.01,
    )
    return msgspec.structs.replace(made, **changes)


@pytest.fixture
def run(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Report]]:
    monkeypatch.setattr("tierline.core.flow.profiling.RETRY_S", 0.01)

    def go(*orders: Order | bytes, then: Callable[[Profiler], None] = lambda p: None, away: int = 0) -> list[Report]:
        """What an edge node reports to its parent."""

        async def main() -> list[Report]:
            def nothing(*_: Any) -> None:
                return None

            clock = MonotonicClock()
            node = Node("edge", 1, clock, EngineSettings(), on_outcome=nothing, on_answered=nothing, on_batch=nothing)
            node.adopt(make_plan(three_tiers(), tiny_bundle.manifest, tiny_bundle.digest), tiny_bundle)
            node.parent = Link(Session("edge", 1), clock, nothing)
            profiler, parent = Profiler(node), Parent(num_away=away)
            profiler.parent = parent
            for one in orders:
                profiler.take(one if isinstance(one, bytes) else msgspec.json.encode(one))
            while profiler._tasks:
                await asyncio.wait(list(profiler._tasks))
            then(profiler)
            while profiler._tasks:
                await asyncio.wait(list(profiler._tasks))
            profiler.close()
            node.close()
            return parent.reports

        return asyncio.run(asyncio.wait_for(main(), 20))

    return go


def test_an_order_comes_back_whole(run: Any) -> None:
    (report,) = run(order())
    own, link = report.profile, report.link
    assert (report.order, report.node, report.error, own.node, own.tier) == ("7", "edge", "", "edge", Tier.EDGE)
    assert [(t.first, t.last, t.batch) for t in own.sections] == [
        ("input", "a", 1), ("input", "a", 3), ("a", "output", 1), ("a", "output", 3),
    ]  # fmt: skip
    assert [(t.exit, t.batch) for t in own.heads] == [("early", 1), ("early", 3)]
    assert {(t.cut, t.token) for t in own.codecs} == {("input", "raw"), ("input", "jpeg"), ("a", "raw")}
    assert own.codec("input", "raw").num_bytes == 8 * 8 * 4
    assert own.codec("a", "raw").num_bytes == 4 * 8 * 8 * 4
    assert set(own.skipped) == {"jpeg at a"}
    assert (link.rtt_ms, link.up_bps, link.down_bps, link.measured_over_s) == (50.0, 5e6, 6e6, 0.5)


def test_what_a_node_cannot_do_is_noted_and_the_rest_is_measured(run: Any) -> None:
    pieces = (
        OrderedPiece("input", "broken", "float32", digest_of(b"no model")),
        OrderedPiece("broken", "x", "float32", digest_of(TOP)),
        OrderedPiece("input", "misfit", "float32", digest_of(WRONG)),
        *order().pieces,
    )
    (report,) = run(order(pieces=pieces, engines=("onnxruntime", "no_such"), heads=()))
    skipped = report.profile.skipped
    assert "cannot load this model" in skipped["input..broken onnxruntime"]
    assert skipped["broken..x onnxruntime"] == "nothing gave rows at 'broken'"
    assert "takes [5], the rows at its cut are [1, 8, 8]" in skipped["input..misfit onnxruntime"]
    assert "no such engine: 'no_such'" in skipped["input..a no_such"]
    assert {t.engine for t in report.profile.sections} == {"onnxruntime"}
    assert len(report.profile.sections) == 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"inputs": digest_of(b"no model")}, "no .npy file"),
        ({"inputs": digest_of(IMAGES)}, "expected 1 to 256 of float32"),
        ({"images": "00"}, "lost"),
    ],
)
def test_an_order_that_cannot_be_carried_out_is_answered(run: Any, changes: dict[str, Any], said: str) -> None:
    (report,) = run(order(**changes))
    assert said in report.error
    assert report.profile is None


def test_one_order_at_a_time(run: Any) -> None:
    first, second = run(order(), order(id="8"))
    assert {(r.order, bool(r.error)) for r in (first, second)} == {("7", False), ("8", True)}


def test_a_report_waits_for_its_parent(run: Any) -> None:
    (report,) = run(order(pieces=(), heads=(), codecs=()), away=3)
    assert report.profile.sections == ()


def test_orders_and_reports_of_nodes_below_pass_through(run: Any) -> None:
    below = order(node="device-left")

    def then(profiler: Profiler) -> None:
        assert profiler.orders("device-middle") == ()
        (raw,) = profiler.orders("device-left")
        assert msgspec.json.decode(raw, type=Order) == below
        assert profiler.orders("device-left") == ()
        assert all(profiler.file(digest) == FILES[digest] for digest in below.digests())
        profiler.report("device-left", msgspec.json.encode(Report("7", "device-left", error="why")))
        with pytest.raises(PeerRejected, match="'device-left' cannot report on 'device-right'"):
            profiler.report("device-left", msgspec.json.encode(Report("7", "device-right")))
        with pytest.raises(BadFrame, match="not a measuring report"):
            profiler.report("device-left", b"{}")
        with pytest.raises(BadFrame, match="'cloud' is not below 'edge'"):
            profiler.report("device-left", msgspec.json.encode(Report("7", "cloud")))

    (report,) = run(below, then=then)
    assert (report.node, report.error) == ("device-left", "why")


@pytest.mark.parametrize("raw", [b"", b"[]", msgspec.json.encode(order(node="stranger"))])
def test_orders_that_make_no_sense_are_dropped(run: Any, raw: bytes, caplog: pytest.LogCaptureFixture) -> None:
    assert run(raw) == []
    assert "an order to measure is dropped" in caplog.text
