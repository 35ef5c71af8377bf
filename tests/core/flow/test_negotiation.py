"""Codecs of a link: offered where they can be imported, refused by name where they are missing, on both sides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from bench import Bench, TickingClock, device_outputs
from tiny_bundle import VIEWS, three_tiers

from tierline.core import catalog
from tierline.core.bundle import Bundle
from tierline.core.coding import codec_for
from tierline.core.errors import MissingDependency, UnknownCodec
from tierline.core.flow.coding import encode_feature, encode_fused
from tierline.core.flow.desk import Desk
from tierline.core.flow.negotiate import check_offer, needed_tokens, offered_codecs, uplink_levels
from tierline.core.flow.node import EngineSettings, Node
from tierline.core.link import messages as m
from tierline.core.link.fleet import Beat, Hello
from tierline.core.plan import Hierarchy, HierarchyNode, Plan, make_plan
from tierline.core.types import Payload, Tier
from tierline.edge.agent import Agent
from tierline.edge.config import AgentConfig
from tierline.edge.config import Node as AgentNode

D, E, C = Tier.DEVICE, Tier.EDGE, Tier.CLOUD


@pytest.fixture
def without_affine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installation that lacks what `affine` needs."""
    load = catalog.load

    def lacking(room: str, name: str, *part: str) -> Any:
        if name == "affine":
            raise MissingDependency("codec 'affine' needs the Python package 'scales': pip install scales")
        return load(room, name, *part)

    monkeypatch.setattr(catalog, "load", lacking)
    for cache in (offered_codecs, codec_for):
        cache.cache_clear()
    yield
    for cache in (offered_codecs, codec_for):
        cache.cache_clear()


def plan_of(bundle: Bundle, hierarchy: Hierarchy | None = None, **changes: Any) -> Plan:
    plan = make_plan(hierarchy or three_tiers(), bundle.manifest, bundle.digest)
    return msgspec.structs.replace(plan, **changes)


def hello(node: str, *codecs: str) -> Hello:
    return Hello(node, "device", 1, (), "", codecs, "test")


def desk_of(bundle: Bundle, plan: Plan, node: str = "edge") -> Desk:
    def nothing(*_: Any) -> None:
        return None

    made = Node(node, 1, TickingClock(), EngineSettings(), on_outcome=nothing, on_answered=nothing, on_batch=nothing)
    made.adopt(plan, bundle)
    return Desk(made)


# --- what is offered, and what is needed ---------------------------------------------------------------------------


def test_a_codec_whose_library_is_missing_is_not_offered(without_affine: None) -> None:
    assert set(catalog.names("codec")) - set(offered_codecs()) >= {"affine"}
    assert {"raw", "float16", "bitplane"} <= set(offered_codecs())


def test_each_node_sends_the_highest_level_that_ran_below(tiny_bundle: Bundle) -> None:
    assert uplink_levels(plan_of(tiny_bundle)) == {"edge": {1}, **{f"device-{v}": {0} for v in VIEWS}}
    deep = Hierarchy(
        (
            HierarchyNode("cloud", C),
            HierarchyNode("far", E, "cloud"),
            HierarchyNode("near", E, "far"),
            HierarchyNode("box", D, "near", tuple(VIEWS)),
        )
    )
    assert uplink_levels(plan_of(tiny_bundle, deep)) == {"box": {0}, "near": {1}, "far": {1}}
    alone = Hierarchy((HierarchyNode("box", E, "", tuple(VIEWS)),))
    assert uplink_levels(plan_of(tiny_bundle, alone)) == {}


def test_a_node_needs_the_codecs_of_its_own_links_only(tiny_bundle: Bundle) -> None:
    plan = plan_of(tiny_bundle, codecs=["affine:4", "bitplane", "raw"], links={"device-left": "sparse_bitmap+affine:2"})
    always = {"raw", "float16"}
    assert needed_tokens(plan, "device-left") == always | {"sparse_bitmap+affine:2"}
    assert needed_tokens(plan, "device-right") == always | {"affine:4"}
    assert needed_tokens(plan, "edge") == always | {"sparse_bitmap+affine:2", "affine:4", "bitplane"}
    assert needed_tokens(plan, "cloud") == always | {"bitplane"}


# --- refusals ------------------------------------------------------------------------------------------------------


def test_the_parent_refuses_a_child_by_name(tiny_bundle: Bundle) -> None:
    desk = desk_of(tiny_bundle, plan_of(tiny_bundle, codecs=["sparse_bitmap+affine:4", "bitplane", "raw"]))
    with pytest.raises(UnknownCodec) as caught:
        desk.admit(hello("device-left", "raw", "float16", "affine"))
    for word in ("'device-left'", "no codec sparse_bitmap,", "plan 1", "sparse_bitmap+affine:4", "update tierline"):
        assert word in str(caught.value)
    # The edge node's own codec is no business of a device.
    desk.admit(hello("device-left", "raw", "float16", "affine", "sparse_bitmap"))
    desk.node.close()


def test_the_child_refuses_a_plan_by_name(tiny_bundle: Bundle, without_affine: None) -> None:
    plan = plan_of(tiny_bundle, codecs=["affine:4", "bitplane", "raw"])
    with pytest.raises(UnknownCodec, match=r"'device-left' has no codec affine, .*: pip install scales"):
        check_offer(plan, "device-left", offered_codecs())


def test_a_change_is_checked_against_who_has_joined(tiny_bundle: Bundle) -> None:
    """Offers climb with the heartbeats, so the root knows those of nodes far below."""
    plan = plan_of(tiny_bundle)
    desk = desk_of(tiny_bundle, plan, "cloud")
    lacking = {"codecs": ["raw", "float16", "bitplane"]}
    desk.beat(Beat("edge", 1, msgspec.json.encode({"edge": {"codecs": offered_codecs()}, "device-left": lacking}), 0.0))
    with pytest.raises(UnknownCodec, match="node 'device-left' has no codec affine"):
        desk.check_offers(msgspec.structs.replace(plan, version=2, codecs=["affine", "bitplane", "raw"]))
    desk.check_offers(msgspec.structs.replace(plan, version=2, codecs=["bitplane", "affine", "raw"]))
    desk.check_offers(msgspec.structs.replace(plan, version=2, links={"device-right": "affine"}))
    desk.node.close()


def test_an_agent_keeps_its_plan_where_it_lacks_a_codec(
    tiny_bundle: Bundle, without_affine: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = str(tmp_path / "state")
    agent = Agent(AgentConfig(schema=1, node=AgentNode("device-left", parent="127.0.0.1:9", state_dir=state)))
    plan = plan_of(tiny_bundle)
    agent.node.adopt(plan, tiny_bundle)
    agent._adoption.turn_knobs(plan_of(tiny_bundle, version=2, max_batch=5).document())
    assert agent.node.plan is not None and agent.node.plan.version == 2
    agent._adoption.turn_knobs(plan_of(tiny_bundle, version=3, codecs=["affine:4", "bitplane", "raw"]).document())
    assert agent.node.plan.version == 2
    assert "plan 3 is not taken: node 'device-left' has no codec affine" in caplog.text
    agent._adoption.turn_knobs(plan_of(tiny_bundle, version=4, codecs=["bitplane", "affine:4", "raw"]).document())
    assert agent.node.plan.version == 4
    agent.node.close()


# --- tokens in payloads --------------------------------------------------------------------------------------------

STRANGE = [
    "nonesuch",
    "affine:99",
    "affine:4:nonesuch=1",
    "raw+raw",
    "",
    "+",
    "a" * 5000,
    "zstd+",
    "affine:" + "9" * 80,
]


@pytest.mark.parametrize("token", STRANGE)
def test_an_unknown_token_counts_as_an_absent_view_and_disturbs_nobody(tiny_bundle: Bundle, token: str) -> None:
    bench = Bench(tiny_bundle, thresholds={"local": 0.0, "edge": 1.0})
    bench.connect_devices()
    bench.send_all(0)
    bench.step()
    (child, pull), *others = bench.port.take_down(m.Pull)
    bench.flow.features(child, m.Features(0, pull.name, pull.ids, Payload(token, "float32", (1, 6), b"\0")))
    ((refused_child, refused),) = bench.port.take_down(m.Refused)
    assert (refused_child, refused.code) == (child, "unknown_codec")
    assert len(refused.message) < 400
    bench.port.down.extend(others)
    bench.answer_pulls()
    bench.step()
    assert {exit_name for exit_name, _, _ in bench.verdicts().values()} == {"edge"}


def test_a_codec_that_is_not_installed_is_an_unknown_token(tiny_bundle: Bundle, without_affine: None) -> None:
    bench = Bench(tiny_bundle)
    bench.connect_devices()
    bench.send("left", 0, feature=Payload("affine:4", "float32", (1, 6), bytes(11)))
    ((_, refused),) = bench.port.take_down(m.Refused)
    assert refused.code == "unknown_codec" and "pip install scales" in refused.message


def test_a_device_sends_in_the_codec_of_its_link(tiny_bundle: Bundle) -> None:
    for links, token in (({}, "affine:4"), ({"device-left": "affine:2"}, "affine:2"), ({"edge": "raw"}, "affine:4")):
        bench = Bench(tiny_bundle, "device-left", mode="eager")
        bench.flow.use(msgspec.structs.replace(bench.plan, codecs=["affine:4", "bitplane", "raw"], links=links))
        bench.capture("left", 0)
        bench.step()
        (part,) = bench.port.take_up(m.Part)
        assert part.feature.codec == token
        spec = bench.levels[0].feature_spec
        sent = codec_for(token).decode(part.feature, spec)
        assert np.abs(sent - device_outputs(tiny_bundle, "left", [0])[1]).max() < 1e-5


# --- what a codec has no place for ---------------------------------------------------------------------------------


def test_values_that_no_scale_holds_travel_as_they_are() -> None:
    x_B = np.array([[1.0, np.nan, 3.0]], np.float32)
    assert encode_feature("affine:4", x_B).codec == "raw"
    assert encode_feature("affine:4", np.nan_to_num(x_B)).codec == "affine:4"


def test_a_fall_back_is_told_once_for_each_link_and_codec(caplog: pytest.LogCaptureFixture) -> None:
    x_B = np.array([[1.0, np.nan, 3.0]], np.float32)
    for sender, token in (("told-a", "affine:4"), ("told-a", "affine:4"), ("told-a", "affine"), ("told-b", "affine")):
        encode_feature(token, x_B, sender)
        encode_feature(token, np.nan_to_num(x_B), sender)
    told = [record.getMessage() for record in caplog.records]
    assert [line.partition(":")[0] for line in told] == ["told-a", "told-a", "told-b"]
    assert "as raw where codec affine:4 cannot hold them: affine:4: a value is NaN" in told[0]


def test_fused_signs_with_an_absent_view_are_never_coded_as_signs() -> None:
    whole_B = np.array([[1, -1, -1, 1]], np.float32)
    assert encode_fused("bitplane", whole_B).codec == "bitplane"
    assert encode_fused("bitplane", whole_B * np.float32([[1, 1, 0, 1]])).codec == "float16"
    third_B = (whole_B / np.float32(3)).astype(np.float32)
    assert encode_fused("bitplane", third_B).codec == "raw"
    assert encode_fused("affine:4", third_B).codec == "affine:4"
