"""A junction, step by step: what joins, what is pulled, who answers, and what is told to whom."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from bench import ALWAYS_LEAVE, MS, NEVER_LEAVE, Bench, damaged, device_outputs, oracle_views, sample
from tiny_bundle import VIEWS, make_tiny_bundle

from tierline.core.bundle import Bundle
from tierline.core.coding import codec_for
from tierline.core.errors import AdmissionRefused, PlanError
from tierline.core.flow import junction as junction_module
from tierline.core.flow.coding import decode_rows
from tierline.core.flow.levels import engine_maker
from tierline.core.flow.oracle import Oracle
from tierline.core.link import messages as m
from tierline.core.plan import Hierarchy, HierarchyNode, Join
from tierline.core.types import Payload, Tier

EVERYONE = {(view, 0) for view in VIEWS}


def told(bench: Bench) -> set[tuple[str, str, int]]:
    """The distinct verdicts, once every view of sample 0 was told."""
    verdicts = bench.verdicts()
    assert set(verdicts) == EVERYONE
    return set(verdicts.values())


def escalated(bench: Bench) -> m.Part:
    parts = bench.port.take_up(m.Part)
    assert len(parts) == 1
    return parts[0]


def climb(bench: Bench) -> m.Part:
    """Bring sample 0 to the parent."""
    bench.connect_devices()
    bench.send_all(0)
    bench.step()
    bench.answer_pulls()
    bench.step()
    return escalated(bench)


# --- the way up ----------------------------------------------------------------------------------------------------


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


# --- what is missing -----------------------------------------------------------------------------------------------


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


# --- twice, late ---------------------------------------------------------------------------------------------------


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


# --- the parent ----------------------------------------------------------------------------------------------------


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


# --- deadlines -----------------------------------------------------------------------------------------------------


def test_deadline_while_joining(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle, join=Join(window_ms=5000))
    bench.connect_devices()
    bench.send("left", 0)
    bench.step(999)
    assert bench.verdicts() == {}
    bench.step(1)
    assert bench.verdicts() == {("left", 0): ("local", "deadline", 1)}


@pytest.mark.parametrize("thresholds", [ALWAYS_LEAVE, NEVER_LEAVE])
def test_deadline_between_the_join_and_its_decision(tiny_bundle: Bundle, thresholds: dict[str, float]) -> None:
    bench = Bench(tiny_bundle, thresholds=thresholds)
    bench.connect_devices()
    bench.send_all(0)
    bench.step(2000)
    assert told(bench) == {("local", "deadline", 3)}
    assert not bench.port.down, "nobody is asked for features any more"
    bench.step(5000)
    assert bench.verdicts() == {} and bench.flow.num_open == 0


def test_no_time_at_all(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle)
    bench.connect_devices()
    bench.send_all(0, budget_ms=0.0)
    bench.step()
    assert told(bench) == {("local", "deadline", 3)}


def test_window_and_deadline_over_at_once(tiny_bundle: Bundle) -> None:
    """The process was held up for longer than both."""
    bench = Bench(tiny_bundle)
    bench.connect_devices()
    bench.send("left", 0)
    bench.send("right", 0)
    bench.step(60_000)
    assert set(bench.verdicts().values()) == {("local", "deadline", 2)}
    bench.step()
    assert bench.flow.num_open == 0


def test_deadline_while_pulling(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle)
    bench.connect_devices()
    bench.send_all(0)
    bench.step()
    bench.step(2000)
    assert told(bench) == {("local", "deadline", 3)}
    bench.answer_pulls()
    bench.step()
    assert bench.verdicts() == {} and not bench.port.up


def test_deadline_while_the_engine_runs(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle)
    bench.connect_devices()
    bench.port.deferred = True
    bench.send_all(0, eager=True)
    bench.send_all(1, eager=True, budget_ms=10_000.0)
    bench.step()
    bench.step(2000)
    assert told(bench) == {("local", "deadline", 3)}
    bench.port.finish()
    bench.step()
    assert escalated(bench).ids == [sample(1)]


def test_deadline_while_waiting_for_the_engine(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle)
    bench.connect_devices()
    bench.port.deferred = True
    bench.send_all(1, eager=True, budget_ms=10_000.0)
    bench.step()
    bench.send_all(0, eager=True)
    bench.step()
    bench.step(2000)
    assert told(bench) == {("local", "deadline", 3)}
    bench.port.finish()
    bench.step()
    assert escalated(bench).ids == [sample(1)] and not bench.port.running


def test_deadline_while_the_parent_works(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle)
    climb(bench)
    bench.step(2000)
    assert told(bench) == {("edge", "deadline", 3)}


def test_an_engine_that_fails(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle)
    bench.connect_devices()
    bench.port.fails = True
    bench.send_all(0, eager=True)
    bench.step()
    assert told(bench) == {("local", "engine", 3)}
    bench.port.fails = False
    bench.send_all(1, eager=True)
    bench.step()
    assert escalated(bench).ids == [sample(1)], "the next sample runs"


# --- what a child must not send ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"plan": 7}, "plan"),
        ({"name": "behind"}, "plan"),
        ({"level": 1}, "plan"),
        ({"level": 2}, "plan"),
        ({"level": 99}, "plan"),
        ({"outputs": {}}, "plan"),
        ({"outputs": {"logits": Payload("nonesuch", "float32", (1, 3), b"")}}, "unknown_codec"),
        ({"outputs": {"logits": Payload("raw", "float32", (1, 4), bytes(16))}}, "corrupt_payload"),
        ({"outputs": {"logits": Payload("raw", "float64", (1, 3), bytes(24))}}, "corrupt_payload"),
        ({"outputs": {"logits": Payload("raw", "float32", (1, 3), bytes(11))}}, "corrupt_payload"),
        ({"feature": Payload("bitplane", "float32", (1, 7), b"\0")}, "corrupt_payload"),
        ({"fused": True, "feature": None, "num_views": [1]}, "plan"),
        ({"fused": True, "feature": codec_for("raw").encode(np.ones((1, 18), np.float32)), "num_views": [1]}, "plan"),
    ],
)
def test_a_wrong_part_is_refused_and_disturbs_nobody(tiny_bundle: Bundle, changes: dict[str, Any], code: str) -> None:
    bench = Bench(tiny_bundle, thresholds=ALWAYS_LEAVE)
    bench.connect_devices()
    bench.send("left", 0)
    bench.send("middle", 0, **changes)
    ((child, refused),) = bench.port.take_down(m.Refused)
    assert (child, refused.code, list(refused.ids)) == ("device-middle", code, [sample(0)])
    assert refused.message
    bench.step()
    bench.send("middle", 0)
    bench.send("right", 0)
    bench.step()
    assert told(bench) == {("local", "", 3)}


def test_a_codec_is_a_name_and_never_a_file(tiny_bundle: Bundle, tmp_path: Any) -> None:
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Evil: pass\n")
    bench = Bench(tiny_bundle)
    bench.connect_devices()
    bench.send("left", 0, outputs={"logits": Payload(str(evil), "float32", (1, 3), bytes(12))})
    ((_, refused),) = bench.port.take_down(m.Refused)
    assert refused.code == "unknown_codec"
    assert not (tmp_path / "ran").exists(), "a peer's token ran a file"


def test_a_child_brings_only_its_own_views(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle, thresholds=ALWAYS_LEAVE)
    bench.connect_devices()
    bench.flow.part("device-right", bench.part("left", 0), bench.clock.now_ns())
    ((child, refused),) = bench.port.take_down(m.Refused)
    assert (child, refused.code) == ("device-right", "plan")
    bench.send_all(0)
    bench.step()
    assert told(bench) == {("local", "", 3)}


def test_a_wrong_feature_counts_as_absent(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle, thresholds={"local": 0.0, "edge": 1.0})
    bench.connect_devices()
    bench.send_all(0)
    bench.step()
    pulls = bench.port.take_down(m.Pull)
    child, pull = pulls[0]
    bench.flow.features(child, m.Features(0, pull.name, pull.ids, Payload("bitplane", "float32", (1, 99), b"")))
    assert [body.code for _, body in bench.port.take_down(m.Refused)] == ["corrupt_payload"]
    bench.port.down.extend(pulls[1:])
    bench.answer_pulls()
    bench.step()
    assert told(bench) == {("edge", "", 3)}


def test_features_of_another_child_are_not_taken(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle)
    bench.connect_devices()
    bench.send_all(0)
    bench.step()
    feature = codec_for("bitplane").encode(np.ones((1, 6), np.float32))
    bench.flow.features("device-right", m.Features(0, "left", [sample(0)], feature))
    bench.flow.features("device-left", m.Features(0, "nonesuch", [sample(0)], feature))
    bench.flow.features("device-left", m.Features(0, "left", [sample(77)], feature))
    bench.step()
    assert bench.flow.num_open == 1 and not bench.port.up


def test_no_more_samples_than_the_bound(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(junction_module, "MAX_OPEN", 2)
    bench = Bench(tiny_bundle, thresholds=ALWAYS_LEAVE)
    bench.connect_devices()
    bench.send("left", 0, 1, 2)
    ((child, refused),) = bench.port.take_down(m.Refused)
    assert (child, refused.code, list(refused.ids)) == ("device-left", "admission", [sample(2)])
    bench.send("middle", 0, 1)
    bench.send("right", 0, 1)
    bench.step()
    assert set(bench.verdicts().values()) == {("local", "", 3)}
    bench.send_all(2)
    bench.step()
    assert len(bench.verdicts()) == 3, "there is room again"


# --- views of its own ----------------------------------------------------------------------------------------------

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


# --- Plans ---------------------------------------------------------------------------------------------------------


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
