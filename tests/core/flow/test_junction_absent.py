"""A junction where something is missing: views, features, the parent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from bench import ALWAYS_LEAVE, MS, Bench, climb, damaged, device_outputs, escalated, told
from tiny_bundle import VIEWS, make_tiny_bundle

from tierline.core.bundle import Bundle
from tierline.core.coding import codec_for
from tierline.core.flow.coding import decode_rows
from tierline.core.link import messages as m
from tierline.core.plan import Join
from tierline.core.types import Tier


def test_gone_features_count_as_absent(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle, thresholds={"local": 0.0, "edge": 1.0})
    bench.connect_devices()
    bench.send_all(0)
    bench.step()
    for child, pull in bench.port.take_down(m.Pull):
        if pull.name == "middle":
            bench.flow.features(child, m.Features(0, "middle", (), None, pull.ids))
        else:
            feature = codec_for("bitplane").encode(device_outputs(tiny_bundle, pull.name, [0])[1])
            bench.flow.features(child, m.Features(0, pull.name, pull.ids, feature))
    bench.step()
    (child, verdict), *_ = bench.port.take_down(m.Verdict)
    features = np.stack([device_outputs(tiny_bundle, view, [0])[1] for view in VIEWS])
    fused = bench.levels[0].fuse_features(features, np.array([[True], [False], [True]]))
    expected = bench.levels[1].run("*", fused)["logits"]
    np.testing.assert_allclose(decode_rows(verdict.outputs["logits"], bench.levels[1].logits_spec), expected, rtol=1e-6)


@pytest.mark.parametrize("aggregator", ["concat", "avg_pool", "max_pool"])
@pytest.mark.parametrize("missing", ["gone", "absent", "late", "none"])
def test_a_fused_feature_climbs_without_loss(
    tmp_path_factory: pytest.TempPathFactory, aggregator: str, missing: str
) -> None:
    """An edge node without a Section of its own: what it sends is what the cloud's Section must see."""
    bundle = make_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle", aggregator=aggregator)
    manifest = bundle.manifest
    levels = [manifest.levels[0], msgspec.structs.replace(manifest.levels[1], tier=Tier.CLOUD), manifest.levels[2]]
    bundle.manifest = msgspec.structs.replace(manifest, levels=levels)
    bench = Bench(bundle)
    bench.connect_devices()
    if missing == "absent":
        bench.disconnect("device-middle")
    for view in VIEWS:
        if view != "middle" or missing in ("gone", "none"):
            bench.send(view, 0)
    if missing == "late":
        bench.step(300)
        bench.send("middle", 0)
    bench.step()
    for child, pull in bench.port.take_down(m.Pull):
        if pull.name == "middle" and missing == "gone":
            bench.flow.features(child, m.Features(0, "middle", (), None, pull.ids))
        else:
            feature = codec_for("bitplane").encode(device_outputs(bundle, pull.name, [0])[1])
            bench.flow.features(child, m.Features(0, pull.name, pull.ids, feature))
    bench.step()
    part = escalated(bench)
    assert part.level == 0 and part.feature is not None
    present = np.array([[True], [missing == "none"], [True]])
    features = np.stack([device_outputs(bundle, view, [0])[1] for view in VIEWS])
    expected = bench.levels[0].fuse_features(features, present)
    np.testing.assert_array_equal(decode_rows(part.feature, bench.levels[0].fused_feature_spec()), expected)
    if missing == "none" and aggregator != "avg_pool":
        assert part.feature.codec == "bitplane"


def test_a_child_lost_while_joining_is_not_waited_for(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle, thresholds=ALWAYS_LEAVE)
    bench.connect_devices()
    bench.send("left", 0)
    bench.send("right", 0)
    bench.disconnect("device-middle")
    bench.step()
    assert set(bench.verdicts().values()) == {("local", "", 2)}


def test_a_child_lost_while_pulled_counts_as_absent(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle, thresholds={"local": 0.0, "edge": 1.0})
    bench.connect_devices()
    bench.send_all(0)
    bench.step()
    bench.port.down = [x for x in bench.port.down if x[0] != "device-left"]
    bench.answer_pulls()
    bench.step()
    assert bench.verdicts() == {}
    bench.disconnect("device-left")
    bench.step()
    assert set(bench.verdicts()) == {("middle", 0), ("right", 0)}


def test_a_child_lost_before_the_pull_counts_as_absent(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle, thresholds={"local": 0.0, "edge": 1.0})
    bench.connect_devices()
    bench.send_all(0)
    bench.port.children.discard("device-left")
    bench.step()
    bench.answer_pulls()
    bench.step()
    assert set(bench.verdicts()) == {("middle", 0), ("right", 0)}


def test_the_window_closes_without_the_missing_view(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle, thresholds=ALWAYS_LEAVE, join=Join(window_ms=200))
    bench.connect_devices()
    bench.send("left", 0)
    bench.step(199)
    assert bench.verdicts() == {}
    bench.step(1)
    assert bench.verdicts() == {("left", 0): ("local", "", 1)}


def test_too_few_views_are_answered_and_marked(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle, thresholds=ALWAYS_LEAVE, join=Join(min_views=3))
    bench.connect_devices()
    bench.send("left", 0)
    bench.send("right", 0)
    bench.step(201)
    assert set(bench.verdicts().values()) == {("local", "views", 2)}


def test_without_a_join_each_view_is_a_sample(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle, thresholds=ALWAYS_LEAVE, join=Join(by="none", min_views=3))
    bench.connect_devices()
    bench.send("left", 0)
    bench.step()
    assert bench.verdicts() == {("left", 0): ("local", "", 1)}


def test_devices_still_to_come_are_waited_for_until_the_grace_is_over(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle, thresholds=ALWAYS_LEAVE, grace_over=False)
    bench.connect("device-left")
    bench.send("left", 0, budget_ms=60_000.0)
    bench.step(300)
    assert bench.verdicts() == {}, "the window is over, the grace is not"
    bench.step(5000)
    assert bench.verdicts() == {("left", 0): ("local", "", 1)}
    bench.send("left", 1)
    bench.step()
    assert bench.verdicts() == {("left", 1): ("local", "", 1)}, "afterwards nobody waits for them"


def test_after_the_grace_a_sample_of_the_only_child_is_complete(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle, thresholds=ALWAYS_LEAVE)
    bench.connect("device-left")
    bench.send("left", 0)
    bench.step()
    assert bench.verdicts() == {("left", 0): ("local", "", 1)}


def test_without_a_parent_the_best_exit_answers_degraded(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle)
    bench.connect_devices()
    bench.port.parent = False
    bench.send_all(0)
    bench.step()
    bench.answer_pulls()
    bench.step()
    assert told(bench) == {("edge", "no_parent", 3)}


def test_a_parent_lost_while_waiting_for_it(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle)
    part = climb(bench)
    bench.port.parent = False
    bench.flow.parent_down()
    assert told(bench) == {("edge", "no_parent", 3)}
    bench.port.parent = True
    bench.flow.verdict(bench.reply(part), bench.clock.now_ns())
    bench.step()
    assert bench.verdicts() == {}, "it was answered"
    assert bench.flow.counts["late"] == 1


def test_a_parent_that_cannot_take_the_message(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle)
    bench.port.to_parent = lambda body: False  # type: ignore[method-assign]
    bench.connect_devices()
    bench.send_all(0, eager=True)
    bench.step()
    assert told(bench) == {("edge", "no_parent", 3)}


def test_a_parent_that_refuses(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle)
    part = climb(bench)
    bench.flow.refused(m.Refused(1, "edge", part.ids, "admission", "too many samples"))
    bench.step()
    assert told(bench) == {("edge", "refused: too many samples", 3)}


@pytest.mark.parametrize(
    "damage",
    [
        lambda verdict: replace(verdict, outputs={"logits": damaged(verdict.outputs["logits"])}),
        lambda verdict: replace(verdict, outputs={"logits": replace(verdict.outputs["logits"], codec="nonesuch")}),
        lambda verdict: replace(verdict, outputs={"logits": codec_for("raw").encode(np.zeros((1, 4), np.float32))}),
        lambda verdict: replace(verdict, outputs={}),
    ],
)
def test_a_verdict_that_cannot_be_read_is_answered_here(tiny_bundle: Bundle, damage: Any) -> None:
    bench = Bench(tiny_bundle)
    part = climb(bench)
    bench.flow.verdict(damage(bench.reply(part)), bench.clock.now_ns())
    bench.step()
    assert told(bench) == {("edge", "bad_verdict", 3)}


def test_too_little_time_to_climb(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle)
    bench.connect_devices()
    bench.port.rtt_ns = 2000 * MS
    bench.send_all(0, eager=True)
    bench.step()
    assert told(bench) == {("edge", "deadline", 3)}


def test_a_parent_gets_less_time_than_is_left(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle)
    bench.port.rtt_ns = 100 * MS
    bench.connect_devices()
    bench.send_all(0, eager=True, budget_ms=1000.0)
    bench.step(300)
    assert escalated(bench).budget_ms[0] == pytest.approx(650, abs=1)
