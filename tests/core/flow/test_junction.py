"""A junction, step by step: what joins, what is pulled, who answers, and what is told to whom."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from bench import ALWAYS_LEAVE, MS, Bench, device_outputs, escalated, oracle_views, sample, told
from tiny_bundle import VIEWS, make_tiny_bundle

from tierline.core.bundle import Bundle
from tierline.core.errors import AdmissionRefused, PlanError
from tierline.core.flow import junction as junction_module
from tierline.core.flow.coding import decode_rows
from tierline.core.flow.levels import engine_maker
from tierline.core.flow.oracle import Oracle
from tierline.core.link import messages as m
from tierline.core.plan import Hierarchy, HierarchyNode
from tierline.core.types import Tier


def test_a_confident_sample_leaves_at_the_local_exit_without_features(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle, thresholds=ALWAYS_LEAVE)
    bench.connect_devices()
    bench.send("left", 0)
    bench.send("middle", 0)
    bench.step()
    assert bench.verdicts() == {}, "one view is still awaited"
    bench.send("right", 0)
    bench.step()
    assert told(bench) == {("local", "", 3)}
    assert not bench.port.up and not bench.port.take_down(m.Pull) and bench.flow.num_open == 0


def test_an_unsure_sample_is_pulled_runs_the_edge_section_and_climbs(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle)
    bench.connect_devices()
    bench.send_all(0)
    bench.step()
    pulls = bench.answer_pulls()
    assert sorted(pull.name for pull in pulls) == sorted(VIEWS)
    bench.step()
    part = escalated(bench)
    assert (part.level, part.name, part.fused, part.ids, part.num_views) == (1, "edge", True, [sample(0)], [3])
    oracle = Oracle(tiny_bundle, engine_maker("onnxruntime"))
    feature = bench.levels[0].fuse_features(
        np.stack([device_outputs(tiny_bundle, view, [0])[1] for view in VIEWS]), np.ones((3, 1), np.bool_)
    )
    assert part.feature is not None and part.feature.codec == "bitplane"
    np.testing.assert_array_equal(
        decode_rows(part.feature, bench.levels[1].fused_feature_spec()), oracle.levels[1].run("*", feature)["feature"]
    )
    assert bench.verdicts() == {}
    bench.flow.verdict(bench.reply(part), bench.clock.now_ns())
    bench.step()
    assert told(bench) == {("cloud", "", 3)}
    assert bench.flow.num_open == 0


def test_eager_features_need_no_pull(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle, mode="eager", thresholds={"local": 0.0, "edge": 1.0})
    bench.connect_devices()
    bench.send_all(0, eager=True)
    bench.step()
    assert not bench.port.take_down(m.Pull)
    assert told(bench) == {("edge", "", 3)}


def test_the_verdict_holds_the_outputs_of_its_exit(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle, thresholds={"local": 0.0, "edge": 1.0})
    bench.connect_devices()
    bench.send_all(3, 4)
    bench.step()
    bench.answer_pulls()
    bench.step()
    expected = Oracle(tiny_bundle, engine_maker("onnxruntime")).exits(oracle_views(tiny_bundle)).outputs["edge"]
    verdicts = [body for _, body in bench.port.take_down(m.Verdict)]
    assert len(verdicts) == 3, "one verdict per child holds both rows"
    for verdict in verdicts:
        got = decode_rows(verdict.outputs["logits"], bench.levels[1].logits_spec)
        rows = [i.seq for i in verdict.ids]
        np.testing.assert_allclose(got, expected["logits"][rows], rtol=1e-6)


def test_batches_hold_at_most_what_the_plan_says(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle, thresholds={"local": 0.0, "edge": 1.0}, max_batch=4)
    bench.connect_devices()
    bench.send_all(*range(10), eager=True)
    bench.step()
    assert len(bench.verdicts()) == 30
    assert (bench.flow.counts["batches"], bench.flow.counts["batched"]) == (3, 10)


def test_samples_gather_while_the_engine_is_busy(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle, thresholds={"local": 0.0, "edge": 1.0})
    bench.connect_devices()
    bench.port.deferred = True
    for seq in range(3):
        bench.send_all(seq, eager=True)
        bench.step()
    assert len(bench.port.running) == 1
    level, part, x_B, done = bench.port.running.pop()
    bench.clock.advance(5)
    done(bench.levels[level].run(part, x_B), 5)
    bench.step()
    assert [len(x[2]) for x in bench.port.running] == [2]
    bench.port.finish()
    bench.step()
    assert len(bench.verdicts()) == 9


def test_an_exit_with_a_head_decides_as_the_oracle_does(tmp_path: Any) -> None:
    bundle = make_tiny_bundle(tmp_path / "bundle", head=True)
    bench = Bench(bundle, thresholds=ALWAYS_LEAVE)
    bench.connect_devices()
    bench.send_all(*range(20))
    bench.step()
    ((_, verdict), *_) = bench.port.take_down(m.Verdict)
    expected = (
        Oracle(bundle, engine_maker("onnxruntime")).exits(oracle_views(bundle)[:, :20]).outputs["local"]["logits"]
    )
    np.testing.assert_allclose(decode_rows(verdict.outputs["logits"], bench.levels[0].logits_spec), expected, rtol=1e-5)


def test_duplicates_and_late_views_get_the_same_verdict(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle, thresholds=ALWAYS_LEAVE)
    bench.connect_devices()
    bench.send("left", 0)
    bench.send("left", 0)
    bench.send("middle", 0)
    bench.step(201)
    (_, first), (_, second) = bench.port.take_down(m.Verdict)
    bench.send("right", 0)
    bench.step()
    ((child, late),) = bench.port.take_down(m.Verdict)
    assert child == "device-right" and late.ids == [sample(0)]
    assert first.outputs == second.outputs == late.outputs
    assert first.exits == late.exits and list(late.num_views) == [2]
    bench.send("left", 0)
    bench.step()
    ((child, again),) = bench.port.take_down(m.Verdict)
    assert child == "device-left" and again.outputs == first.outputs
    assert bench.flow.counts["late"] == 2


@pytest.mark.parametrize("state", ["pull", "run", "up"])
def test_a_view_that_comes_after_the_join_gets_the_verdict_of_the_others(tiny_bundle: Bundle, state: str) -> None:
    bench = Bench(tiny_bundle, tick_ns=10)
    bench.connect_devices()
    bench.port.deferred = True
    bench.send("left", 0)
    bench.send("middle", 0)
    bench.step(201)
    if state != "pull":
        bench.answer_pulls()
        bench.step(5)
    if state == "up":
        bench.port.finish()
        bench.step(5)
        part = escalated(bench)
    bench.send("right", 0)
    bench.step(5)
    if state == "pull":
        bench.answer_pulls()
        bench.step(5)
    if state != "up":
        bench.port.finish()
        bench.step(5)
        part = escalated(bench)
    bench.clock.advance(4 * MS)
    bench.flow.verdict(bench.reply(part, residence_ns=3 * MS), bench.clock.now_ns())
    bench.clock.advance(MS)
    bench.flow.pump()
    verdicts = [body for _, body in bench.port.take_down(m.Verdict)]
    assert {verdict.name for verdict in verdicts} == set(VIEWS)
    for verdict in verdicts:
        above = sum(hop.rows_ns[0][0] for hop in verdict.hops[1:2])
        residence, *spans = verdict.hops[0].rows_ns[0]
        assert sum(spans) + above <= residence, verdict.name


ALL_IN_ONE = Hierarchy(
    (HierarchyNode("cloud", Tier.CLOUD), HierarchyNode("edge", Tier.EDGE, "cloud", views=tuple(VIEWS)))
)


def test_a_node_that_hosts_every_view(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle, hierarchy=ALL_IN_ONE)
    for view in VIEWS:
        bench.capture(view, 0)
    bench.step()
    bench.flow.verdict(bench.reply(escalated(bench)), bench.clock.now_ns())
    bench.step()
    assert [(x.view, x.exit, x.degraded, x.num_views, x.truth) for x in bench.port.outcomes] == [
        (view, "cloud", False, 3, 0) for view in VIEWS
    ]


def test_an_own_view_beyond_the_bound_is_refused_to_its_caller(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(junction_module, "MAX_OPEN", 0)
    bench = Bench(tiny_bundle, hierarchy=ALL_IN_ONE)
    with pytest.raises(AdmissionRefused):
        bench.capture("left", 0)


def test_an_own_view_captured_twice_is_refused_to_its_caller(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle, hierarchy=ALL_IN_ONE)
    bench.capture("left", 0)
    with pytest.raises(AdmissionRefused):
        bench.capture("left", 0)


@pytest.mark.parametrize("stage", ["join", "pull", "run", "up"])
def test_whatever_is_open_is_answered_when_the_node_stops(tiny_bundle: Bundle, stage: str) -> None:
    bench = Bench(tiny_bundle)
    bench.connect_devices()
    bench.port.deferred = True
    for view in VIEWS[: 2 if stage == "join" else 3]:
        bench.send(view, 0)
    if stage != "join":
        bench.step()
    if stage in ("run", "up"):
        bench.answer_pulls()
        bench.step()
    if stage == "up":
        bench.port.finish()
        bench.step()
    bench.flow.stop()
    verdicts = bench.verdicts()
    assert len(verdicts) == (2 if stage == "join" else 3)
    assert {degraded for _, degraded, _ in verdicts.values()} == {"stopped"}
    bench.port.finish()
    bench.step()
    assert bench.verdicts() == {} and bench.flow.num_open == 0


def test_knobs_change_at_once_and_older_rows_still_fit(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle)
    bench.connect_devices()
    old = [bench.part(view, 0) for view in VIEWS]
    bench.flow.use(msgspec.structs.replace(bench.plan, version=2, thresholds=ALWAYS_LEAVE))
    for part in old:
        bench.flow.part(f"device-{part.name}", part, bench.clock.now_ns())
    bench.step()
    ((_, verdict), *_) = bench.port.take_down(m.Verdict)
    assert verdict.plan == 2 and verdict.exits == ["local"]


def test_another_placement_is_no_knob(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle)
    nodes = {**bench.plan.nodes, "edge": msgspec.structs.replace(bench.plan.nodes["edge"], runs=())}
    with pytest.raises(PlanError, match="edge"):
        bench.flow.use(msgspec.structs.replace(bench.plan, version=2, nodes=nodes))
