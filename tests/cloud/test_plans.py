"""Plans as the cloud keeps and changes them: knobs only, checked, in files before in force."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tiny_bundle import VIEWS, make_tiny_bundle, three_tiers

from tierline.cloud.plans import PlanStore
from tierline.core.bundle import Bundle
from tierline.core.coding import codec_for
from tierline.core.errors import PlanError, TierlineError, UnknownCodec
from tierline.core.flow.knobs import PlanKnobs, with_knobs
from tierline.core.flow.negotiate import uplink_levels
from tierline.core.plan import Hierarchy, HierarchyNode, Plan, make_plan
from tierline.core.types import Payload, Tier


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_tiny_bundle(tmp_path_factory.mktemp("relu") / "bundle", num_relu=12)


def made(bundle: Bundle, **changes: Any) -> Plan:
    return make_plan(three_tiers(), bundle.manifest, bundle.digest, **changes)


def started(bundle: Bundle, folder: Path) -> tuple[PlanStore, list[Plan]]:
    used: list[Plan] = []
    store = PlanStore(folder)
    store.start(made(bundle), bundle)
    store.attach(lambda plan: None, used.append)
    return store, used


def test_a_change_is_kept_then_used(bundle: Bundle, tmp_path: Path) -> None:
    store, used = started(bundle, tmp_path)
    told = store.change(["codecs.device=affine:4", "max_batch=8"], 0, False)
    assert told["knobs"]["codecs"] == {"device": "affine:4", "edge": "raw"}
    assert (told["version"], told["knobs"]["max_batch"]) == (2, 8)
    assert [plan.version for plan in used] == [2]
    assert used[0].codec("device-left", 0) == "affine:4"
    assert json.loads((tmp_path / "plans" / "plan-2.json").read_bytes())["why"] == (
        "--set codecs.device=affine:4 --set max_batch=8"
    )


def test_a_link_of_its_own_and_back(bundle: Bundle, tmp_path: Path) -> None:
    store, used = started(bundle, tmp_path)
    store.change(["links.device-left=affine:2"], 0, False)
    assert [used[-1].codec(f"device-{view}", 0) for view in ("left", "right")] == ["affine:2", "raw"]
    store.change(["links.device-left="], 0, False)
    assert used[-1].links == {}


def test_what_changes_nothing_makes_no_version(bundle: Bundle, tmp_path: Path) -> None:
    store, used = started(bundle, tmp_path)
    assert store.change(["codecs.device=raw"], 0, False)["version"] == 1
    assert store.change(["codecs.device=affine"], 0, True)["version"] == 2
    assert (used, [row["version"] for row in store.plans()]) == ([], [1])


def test_rolling_back_is_a_new_version(bundle: Bundle, tmp_path: Path) -> None:
    store, used = started(bundle, tmp_path)
    store.change(["codecs.edge=affine:3", "links.device-left=float16"], 0, False)
    told = store.change([], 1, False)
    assert (told["version"], used[-1].codecs, used[-1].links) == (3, ["raw", "raw", "raw"], {})
    with pytest.raises(PlanError, match="no plan 9 is kept here; there are 1, 2, 3"):
        store.change([], 9, False)


def test_a_restart_goes_on_unless_the_files_changed(bundle: Bundle, tmp_path: Path) -> None:
    store, _ = started(bundle, tmp_path)
    store.change(["mode=eager"], 0, False)
    again = PlanStore(tmp_path).start(made(bundle), bundle)
    assert (again.version, again.mode) == (2, "eager")
    edited = PlanStore(tmp_path).start(made(bundle, max_batch=7), bundle)
    assert (edited.version, edited.mode, edited.max_batch) == (3, "on_demand", 7)
    assert PlanStore(tmp_path).start(made(bundle, max_batch=7), bundle).version == 3


def test_knobs_of_another_structure_are_not_rolled_back(bundle: Bundle, tmp_path: Path) -> None:
    started(bundle, tmp_path)
    other = msgspec.structs.replace(made(bundle), bundle="0" * 64)
    store = PlanStore(tmp_path)
    assert store.start(other, bundle).version == 2
    assert store.plans()[0]["version"] == 1 and "knobs" not in store.plans()[0]
    with pytest.raises(PlanError, match="plan 1 has another structure"):
        store.change([], 1, False)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("codecs.device=affin:4", "no such codec: 'affin'; nearest is \"affine\""),
        ("codecs.device=affine:9", "level 'device': codec 'affine:9': bits is 9"),
        ("codecs.device=radix", "codec 'radix' for level 'device'"),
        ("codecs.edge=radix:3:low=-1", "codec 'radix:3:low=-1' for level 'edge'"),
        ("links.edge=radix", "codec 'radix' for level 'edge'"),
        ("codecs.device=bitplane", "'bitplane': keeps signs only, and features of level 'device' are real numbers"),
        ("links.edge=bitplane", "features of level 'edge' are real numbers"),
        ("codecs.cloud=affine:4", "codecs.cloud: features climb from the levels device, edge"),
        ("links.device-lef=affine", "links.device-lef: no node of this name sends features up; nearest is"),
        ("links.cloud=affine", "links.cloud: no node of this name"),
        ("thresholds.local=2", "--set: thresholds.local"),
        ("thresholds.cloud=0.5", "threshold for 'cloud'"),
        ("nodes.edge.tier=cloud", "--set nodes.edge.tier: no such key"),
        ("mode", "write --set table.key=value"),
    ],
)
def test_a_wrong_knob_is_named_and_changes_nothing(bundle: Bundle, tmp_path: Path, setting: str, words: str) -> None:
    store, used = started(bundle, tmp_path)
    with pytest.raises(TierlineError) as caught:
        store.change(["max_batch=3", setting], 0, False)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert (used, len(store.plans())) == ([], 1)


def test_a_codec_that_no_node_uses_is_checked_too(bundle: Bundle) -> None:
    """One edge node hosts all views, so features of devices travel nowhere until nodes move."""
    alone = Hierarchy((HierarchyNode("cloud", Tier.CLOUD), HierarchyNode("box", Tier.EDGE, "cloud", tuple(VIEWS))))
    plan = make_plan(alone, bundle.manifest, bundle.digest)
    assert uplink_levels(plan) == {"box": {1}}
    for token, error in (("nope", UnknownCodec), ("jpeg", PlanError), ("bitplane", PlanError), ("radix", PlanError)):
        with pytest.raises(error, match="'device'"):
            with_knobs(plan, bundle.manifest, PlanKnobs(codecs={"device": token}), 2)
    assert with_knobs(plan, bundle.manifest, PlanKnobs(codecs={"device": "affine"}), 2).codecs[0] == "affine"


def test_signs_take_the_codecs_that_hold_them(tiny_bundle: Bundle) -> None:
    plan = make_plan(three_tiers(), tiny_bundle.manifest, tiny_bundle.digest)
    for token in ("bitplane", "radix:low=-1", "affine:1", "topk:0.5+float16", "bitplane+zstd", "raw"):
        assert with_knobs(plan, tiny_bundle.manifest, PlanKnobs(codecs={"device": token}), 2).codecs[0] == token
    for token in ("radix", "radix:2:low=-1", "radix+zstd"):
        with pytest.raises(PlanError, match=re.escape(f"codec '{token}' for level 'device'")):
            with_knobs(plan, tiny_bundle.manifest, PlanKnobs(codecs={"device": token}), 2)


def test_a_plan_keeps_tokens_in_their_canonical_form(bundle: Bundle) -> None:
    knobs = PlanKnobs(codecs={"device": "affine:bits=04"}, links={"edge": "topk:.1000001+affine:8"})
    plan = with_knobs(made(bundle), bundle.manifest, knobs, 2)
    assert (plan.codecs[0], plan.links) == ("affine:4", {"edge": "topk:0.1000001+affine"})


def test_a_codec_that_its_own_decoder_refuses_is_no_knob(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(self: Any, x_B: Any, *, seed: int = 0) -> Payload:
        return Payload("affine:3", "float32", x_B.shape, b"")

    monkeypatch.setattr(type(codec_for("affine")), "encode", other)
    with pytest.raises(PlanError, match="codec 'affine:4' for level 'device': affine:3: 0 bytes"):
        with_knobs(made(bundle), bundle.manifest, PlanKnobs(codecs={"device": "affine:4"}), 2)


def test_what_nodes_cannot_run_is_not_kept(bundle: Bundle, tmp_path: Path) -> None:
    store, used = started(bundle, tmp_path)

    def refuse(plan: Plan) -> None:
        raise UnknownCodec("node 'device-left' has no codec zstd")

    store.attach(refuse, used.append)
    with pytest.raises(UnknownCodec, match="device-left"):
        store.change(["codecs.device=affine"], 0, False)
    assert (used, len(store.plans())) == ([], 1)
