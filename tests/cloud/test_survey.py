"""Who measures what, and when: ranges by tier, one node of a machine at a time, nodes that are lost or stuck."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support.trained import lenet_mnist

from tierline.cloud.order_book import FEW_RANGES, NUM_ROWS, OrderBook, ranges
from tierline.cloud.survey import LOST_S, Round
from tierline.core.bundle import Bundle
from tierline.core.candidates import candidates_of
from tierline.core.flow.levels import engine_maker
from tierline.core.flow.orders import MAX_PIECES, Report
from tierline.core.link.fleet import ProfileStep, ProfileWish
from tierline.core.plan import Hierarchy, HierarchyNode, make_plan
from tierline.core.profile import LinkTime, NodeProfile
from tierline.core.types import Tier

STALLED_S = 30.0


def status(**machines: str) -> dict[str, Any]:
    return {node: {"connected": True, "machine": machine, "profiling": ""} for node, machine in machines.items()}


def done(node: str, order: str = "7") -> Report:
    profile = NodeProfile(node, Tier.EDGE, "", {}, skipped={"x": "y"})
    return Report(order, node, profile, LinkTime(node, 1.0, 1e6, 1e6, 1.0))


def test_devices_measure_prefixes_the_root_suffixes_and_edges_both() -> None:
    assert ranges(Tier.DEVICE, 4) == [(0, 2), (0, 3)]
    assert ranges(Tier.CLOUD, 4) == [(0, 3), (1, 3)]
    assert set(ranges(Tier.EDGE, 5)) == {(0, 2), (0, 3), (0, 4), (1, 4), (2, 4), (1, 3)}
    for tier in Tier:
        assert ranges(tier, 2) == []


def test_ranges_between_inner_cuts_are_left_to_sums_where_they_are_many() -> None:
    few, many = ranges(Tier.EDGE, 8), ranges(Tier.EDGE, 40)
    assert len([(a, b) for a, b in few if a and b < 7]) <= FEW_RANGES
    assert not [(a, b) for a, b in many if a and b < 39]
    assert len(many) + 39 < MAX_PIECES


def test_nodes_of_one_machine_take_turns_and_others_do_not_wait() -> None:
    round_ = Round("7", ["a", "b", "c"])
    now = status(a="m", b="m", c="n")
    assert round_.next_nodes(now) == ["a", "c"]
    round_.began("a", 0.0)
    round_.began("c", 0.0)
    assert round_.next_nodes(now) == []
    round_.take(done("a"))
    assert round_.next_nodes(now) == ["b"]
    round_.began("b", 1.0)
    assert not round_.is_over()
    for node in ("b", "c"):
        round_.take(done(node))
    assert [step.state for step in round_.look(now, 2.0, STALLED_S)] == ["done"] * 3
    assert round_.is_over()


def test_progress_is_told_once_a_change() -> None:
    round_ = Round("7", ["a"])
    now = status(a="m")
    round_.next_nodes(now)
    round_.began("a", 0.0)
    now["a"]["profiling"] = "1/9 input..relu"
    assert round_.look(now, 1.0, STALLED_S) == [ProfileStep("a", "1/9 input..relu")]
    assert round_.look(now, 2.0, STALLED_S) == []


def test_who_is_away_lost_or_stuck_is_named(bundle: Bundle) -> None:
    round_ = Round("7", ["away", "lost", "stuck", "fails", "whole"])
    now = status(lost="1", stuck="2", fails="3", whole="4")
    assert round_.next_nodes(now) == ["lost", "stuck", "fails", "whole"]
    for node in now:
        round_.began(node, 0.0)
    round_.take(Report("7", "fails", error="no space left"))
    round_.take(done("whole", order="6"))
    assert round_.look(now, 1.0, STALLED_S)[0].state == "missing: not connected"
    now["lost"]["connected"] = False
    round_.look(now, 1.5 + LOST_S, STALLED_S)
    round_.take(done("lost"))
    now["stuck"]["profiling"] = "2/9 relu"
    round_.look(now, 2.0 + LOST_S, STALLED_S)
    round_.take(done("whole"))
    round_.look(now, 3.0 + LOST_S + STALLED_S, STALLED_S)
    assert round_.is_over()
    made = round_.profile(bundle, {"whole": {"joined ranges": "too large"}})
    assert made.missing == {
        "away": "not connected",
        "lost": "lost while it was measuring nothing yet",
        "stuck": "no progress for 30 s at 2/9 relu",
        "fails": "no space left",
    }
    assert made.nodes.keys() == made.links.keys() == {"whole"}
    assert made.nodes["whole"].skipped == {"x": "y", "joined ranges": "too large"}
    assert made.bundle == bundle.digest


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return lenet_mnist(tmp_path_factory.mktemp("lenet"))


@pytest.fixture(scope="module")
def book(bundle: Bundle) -> OrderBook:
    nodes = (
        HierarchyNode("cloud", Tier.CLOUD),
        HierarchyNode("edge", Tier.EDGE, "cloud"),
        HierarchyNode("device", Tier.DEVICE, "edge", ("view-0",)),
    )
    return OrderBook(bundle, make_plan(Hierarchy(nodes), bundle.manifest, bundle.digest), ProfileWish(), "7")


@pytest.mark.parametrize("node", ["cloud", "edge", "device"])
def test_an_order_can_be_carried_out_in_its_own_order(book: OrderBook, bundle: Bundle, node: str) -> None:
    order, files = book.order(node)
    known = {"input"}
    for piece in order.pieces:
        assert piece.first in known
        known.add(piece.last)
    assert {head.cut for head in order.heads} <= known
    listed = set(bundle.manifest.files.values())
    assert {digest for digest in order.digests() if digest not in listed} == files.keys()


def test_a_joined_range_computes_what_its_pieces_do(book: OrderBook, bundle: Bundle) -> None:
    import io

    import numpy as np

    order, files = book.order("device")
    rows = np.load(io.BytesIO(files[order.inputs]))
    images = np.load(io.BytesIO(files[order.images]))
    assert rows.shape == images.shape == (NUM_ROWS, 1, 28, 28)
    assert images.dtype == np.uint8
    x_B, named = rows, {"input": rows}
    for cut in candidates_of(bundle.manifest).cuts[1:]:
        assert cut.piece is not None
        engine = engine_maker("onnxruntime")(bundle.read(cut.piece.file), cut.name)
        (x_B,) = engine.run({next(iter(engine.spec.inputs)): x_B}).values()
        named[cut.name] = x_B
    for piece in order.pieces:
        if piece.digest in files and piece.precision == "float32":
            engine = engine_maker("onnxruntime")(files[piece.digest], piece.last)
            (found_B,) = engine.run({next(iter(engine.spec.inputs)): named[piece.first]}).values()
            np.testing.assert_allclose(found_B, named[piece.last], rtol=1e-4, atol=1e-4)


def test_ranges_too_large_to_fetch_are_left_to_sums_and_that_is_said(
    bundle: Bundle, book: OrderBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tierline.cloud.order_book.MAX_JOINED_BYTES", 1000)
    order, _ = book.order("device")
    assert [(p.first, p.last) for p in order.pieces][-1] == ("relu_3", "output")
    assert "sums of neighbouring cuts stand for them" in book.notes["device"]["joined ranges"]
    whole, _ = book.order("cloud")
    assert ("input", "output") in {(p.first, p.last) for p in whole.pieces}


def test_a_wish_is_followed(bundle: Bundle, book: OrderBook) -> None:
    wish = ProfileWish(("device",), ("torch",), (4,), ("raw",), 0.25)
    order, _ = OrderBook(bundle, book.plan, wish, "8").order("device")
    assert (order.engines, order.batches, order.codecs, order.run_s) == (("torch",), (4,), ("raw",), 0.25)
    assert msgspec.json.decode(msgspec.json.encode(order), type=type(order)) == order


def test_a_bundle_without_candidates_cannot_be_profiled(tmp_path: Path) -> None:
    from tests.support.tiny_bundle import make_tiny_bundle, three_tiers

    from tierline.core.errors import BundleError

    tiny = make_tiny_bundle(tmp_path / "tiny")
    plan = make_plan(three_tiers(), tiny.manifest, tiny.digest)
    with pytest.raises(BundleError, match="made with one fixed cut"):
        OrderBook(tiny, plan, ProfileWish(), "9")
