"""Who runs what: placement as a pure function of a hierarchy and a Bundle."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tiny_bundle import VIEWS, three_tiers

from tierline.core.bundle import Bundle, Calibration, Exit, Level, Manifest
from tierline.core.errors import PlanError
from tierline.core.plan import Hierarchy, HierarchyNode, Join, make_plan, parse_plan, place
from tierline.core.types import Tier

D, E, C = Tier.DEVICE, Tier.EDGE, Tier.CLOUD


def node(id: str, tier: Tier, parent: str = "", *views: str) -> HierarchyNode:
    return HierarchyNode(id, tier, parent, views)


def tree(*nodes: HierarchyNode) -> Hierarchy:
    return Hierarchy(nodes)


def roles(hierarchy: Hierarchy, manifest: Manifest) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """(joins, runs) by node."""
    return {name: (p.joins, p.runs) for name, p in place(hierarchy, manifest).items()}


def devices(parent: str, *views: str) -> list[HierarchyNode]:
    return [node(f"d-{view}", D, parent, view) for view in views]


@pytest.fixture
def manifest(tiny_bundle: Bundle) -> Manifest:
    return tiny_bundle.manifest


def test_devices_edge_cloud(manifest: Manifest) -> None:
    placed = place(three_tiers(), manifest)
    assert (placed["edge"].joins, placed["edge"].runs) == (tuple(VIEWS), (1,))
    assert (placed["cloud"].joins, placed["cloud"].runs) == ((), (2,))
    for view in VIEWS:
        device = placed[f"device-{view}"]
        assert (device.views, device.joins, device.runs, device.parent) == ({view: view}, (), (), "edge")


def test_devices_and_a_cloud_that_does_the_rest(manifest: Manifest) -> None:
    found = roles(tree(node("cloud", C), *devices("cloud", *VIEWS)), manifest)
    assert found["cloud"] == (tuple(VIEWS), (1, 2))


def test_one_node_for_everything(manifest: Manifest) -> None:
    assert roles(tree(node("box", E, "", *VIEWS)), manifest) == {"box": (tuple(VIEWS), (1, 2))}


def test_an_edge_node_without_a_level_of_its_own(manifest: Manifest) -> None:
    levels = [manifest.levels[0], msgspec.structs.replace(manifest.levels[1], tier=C), manifest.levels[2]]
    found = roles(three_tiers(), msgspec.structs.replace(manifest, levels=levels))
    assert found["edge"] == (tuple(VIEWS), ()) and found["cloud"] == ((), (1, 2))


def test_two_sites_play_the_same_roles(manifest: Manifest) -> None:
    hierarchy = tree(
        node("cloud", C),
        node("north", E, "cloud"),
        node("south", E, "cloud"),
        *devices("north", "a", "b", "c"),
        *devices("south", "x", "y"),
    )
    placed = place(hierarchy, manifest)
    assert placed["north"].joins == ("a", "b", "c") and placed["south"].joins == ("x", "y")
    assert placed["north"].runs == placed["south"].runs == (1,) and placed["cloud"].runs == (2,)
    assert [placed[f"d-{v}"].views for v in "abcxy"] == [
        {"a": "left"}, {"b": "middle"}, {"c": "right"}, {"x": "left"}, {"y": "middle"}
    ]  # fmt: skip


def test_views_play_the_role_of_their_name_whatever_their_order(manifest: Manifest) -> None:
    placed = place(tree(node("cloud", C), *devices("cloud", "right", "left")), manifest)
    assert placed["d-right"].views == {"right": "right"} and placed["d-left"].views == {"left": "left"}


def test_one_view_on_a_device_as_branchynet_has_it(manifest: Manifest) -> None:
    device = Level(D, {"only": manifest.levels[0].sections["left"]}, Exit("first"))
    deeper = msgspec.structs.replace(manifest.levels[1], tier=D)
    one = msgspec.structs.replace(manifest, views=["only"], levels=[device, deeper, manifest.levels[2]])
    found = roles(tree(node("cloud", C), node("phone", D, "cloud", "camera")), one)
    assert found == {"phone": (("camera",), (1,)), "cloud": ((), (2,))}


def test_a_chain_of_edge_nodes(manifest: Manifest) -> None:
    hierarchy = tree(node("cloud", C), node("metro", E, "cloud"), node("site", E, "metro"), *devices("site", *VIEWS))
    found = roles(hierarchy, manifest)
    assert found["site"] == (tuple(VIEWS), (1,)) and found["metro"] == ((), ()) and found["cloud"] == ((), (2,))


def test_a_host_that_is_no_device_joins_its_views_with_those_below(manifest: Manifest) -> None:
    hierarchy = tree(node("cloud", C), node("edge", E, "cloud", "left"), *devices("edge", "middle", "right"))
    assert roles(hierarchy, manifest)["edge"] == (("left", "middle", "right"), (1,))


@pytest.mark.parametrize(
    ("hierarchy", "says"),
    [
        (tree(node("a", C), node("a", E, "a", "left")), "'a' is listed twice"),
        (tree(node("a", C), node("b", C, "", "left")), "exactly one node must have no parent, found 2: a, b"),
        (tree(node("a", E, "b", "left"), node("b", E, "a")), "found 0"),
        (tree(node("r", C), node("a", E, "b", "left"), node("b", E, "a")), "circle"),
        (tree(node("r", C), node("a", D, "nobody", "left")), "no node 'nobody'"),
        (tree(node("r", C), node("a", D, "r")), "no node hosts a view"),
        (tree(node("r", C), node("a", D, "r", "left"), node("b", D, "r", "left")), "view 'left' is hosted twice"),
        (tree(node("r", E), node("a", C, "r", "left")), "'a' (cloud) cannot be below 'r' (edge)"),
        (tree(node("r", C), *devices("r", *"wxyz")), "4 views meet at 'r', but Bundle 'tiny' takes 3"),
        (
            tree(node("r", C, "", "x"), node("e", E, "r"), node("d", D, "e", "left")),
            "views meet at 'e' and again above it at 'r'",
        ),
        (
            tree(node("r", C), node("e", E, "r"), node("d1", D, "e", "left"), node("d2", D, "d1", "right")),
            "the views of 'd2' cannot pass through the device 'd1'",
        ),
    ],
)
def test_hierarchies_that_cannot_be_placed(manifest: Manifest, hierarchy: Hierarchy, says: str) -> None:
    with pytest.raises(PlanError) as caught:
        place(hierarchy, manifest)
    assert says in str(caught.value)


# --- the Plan ------------------------------------------------------------------------------------------------------


def plan(bundle: Bundle, **knobs: Any) -> Any:
    return make_plan(three_tiers(), bundle.manifest, bundle.digest, **knobs)


def test_round_trip_and_digest(tiny_bundle: Bundle) -> None:
    made = plan(tiny_bundle, join=Join(by="trigger", period_ms=40.0), mode="eager", budget_ms=100.0, max_batch=3)
    again = parse_plan(made.document(), "here")
    assert again == made and again.digest() == made.digest() and again.document() == made.document()
    assert plan(tiny_bundle).digest() == plan(tiny_bundle).digest() != made.digest()
    assert made.codecs == ["bitplane", "bitplane", "raw"] and made.model == "tiny@1"
    backwards = msgspec.structs.replace(made, nodes=dict(reversed(made.nodes.items())))
    assert backwards.digest() == made.digest()


def test_thresholds_come_from_calibration_then_from_the_user(tiny_bundle: Bundle) -> None:
    assert plan(tiny_bundle).thresholds == {"local": 0.5, "edge": 0.5}
    calibration = Calibration(1, {}, {"local": 0.8, "edge": 0.3}, "best_accuracy", [])
    calibrated = msgspec.structs.replace(tiny_bundle.manifest, calibration=calibration)
    assert make_plan(three_tiers(), calibrated, "d").thresholds == {"local": 0.8, "edge": 0.3}
    assert make_plan(three_tiers(), calibrated, "d", thresholds={"edge": 1.0}).thresholds == {"local": 0.8, "edge": 1.0}


@pytest.mark.parametrize("exit_name", ["cloud", "nonesuch"])
def test_a_threshold_belongs_to_an_exit_that_can_be_left(tiny_bundle: Bundle, exit_name: str) -> None:
    with pytest.raises(PlanError, match=f"'{exit_name}'.*local, edge"):
        plan(tiny_bundle, thresholds={exit_name: 0.5})


@pytest.mark.parametrize("change", [b"", b"[]", b"{", b'{"schema": 1}', b'{"schema": 1, "more": 2}'])
def test_what_is_no_plan(change: bytes) -> None:
    with pytest.raises(PlanError, match="here: not a Plan"):
        parse_plan(change, "here")


def test_another_schema(tiny_bundle: Bundle) -> None:
    other = msgspec.structs.replace(plan(tiny_bundle), schema=2)
    with pytest.raises(PlanError, match="schema 2, this version reads schema 1"):
        parse_plan(other.document(), "here")


def test_lookups(tiny_bundle: Bundle) -> None:
    made = plan(tiny_bundle)
    with pytest.raises(PlanError, match="no node 'nobody'"):
        made.placement("nobody")
    with pytest.raises(PlanError, match="no node 'nobody'"):
        three_tiers().node("nobody")
    assert [n.id for n in three_tiers().children("cloud")] == ["edge"]
    assert three_tiers().views_below("edge") == VIEWS


def test_a_placement_has_the_engine_and_precision_of_its_node(manifest: Manifest) -> None:
    nodes = tuple(
        msgspec.structs.replace(n, engine="tensorrt", precision="int8") if n.id == "edge" else n
        for n in three_tiers().nodes
    )
    placed = place(Hierarchy(nodes), manifest)
    assert {name: (p.engine, p.precision) for name, p in placed.items() if name != "edge"} == {
        name: ("", "float32") for name in placed if name != "edge"
    }
    assert (placed["edge"].engine, placed["edge"].precision) == ("tensorrt", "int8")


def test_a_precision_that_there_is_none_of_is_refused(tiny_bundle: Bundle) -> None:
    plan = make_plan(three_tiers(), tiny_bundle.manifest, tiny_bundle.digest)
    raw = plan.document().replace(b'"precision":"float32"', b'"precision":"int4"', 1)
    with pytest.raises(PlanError, match=r"precision = 'int4': one of float32, float16, int8, float8_e4m3"):
        parse_plan(raw, "the file")
