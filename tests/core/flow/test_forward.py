"""A device below a junction: what goes up, what is held, who answers when."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from bench import MS, Bench, TickingClock, damaged, device_outputs, oracle_views, sample
from tiny_bundle import make_tiny_bundle

from tierline.core.bundle import Bundle
from tierline.core.coding import codec_for
from tierline.core.errors import AdmissionRefused
from tierline.core.flow import forward as forward_module
from tierline.core.flow.coding import decode_rows
from tierline.core.flow.levels import engine_maker
from tierline.core.flow.oracle import Oracle
from tierline.core.flow.timers import Timers
from tierline.core.link import messages as m


@pytest.fixture
def bench(tiny_bundle: Bundle) -> Bench:
    return Bench(tiny_bundle, "device-left")


def answers(bench: Bench) -> list[tuple[int, str, str]]:
    found = [(x.id.seq, x.exit, x.reason) for x in bench.port.outcomes]
    bench.port.outcomes.clear()
    return found


def test_outputs_go_up_in_one_message_and_features_stay(bench: Bench, tiny_bundle: Bundle) -> None:
    bench.capture("left", 0)
    bench.capture("left", 1, budget_ms=500)
    bench.step()
    (part,) = bench.port.take_up(m.Part)
    assert (part.level, part.name, part.ids, part.fused) == (0, "left", [sample(0), sample(1)], False)
    assert part.feature is None
    assert part.budget_ms == pytest.approx([999, 499], abs=1)
    logits = decode_rows(part.outputs["logits"], bench.levels[0].logits_spec)
    np.testing.assert_array_equal(logits, device_outputs(tiny_bundle, "left", [0, 1])[0])
    bench.flow.verdict(bench.reply(part), bench.clock.now_ns())
    assert answers(bench) == [(0, "cloud", ""), (1, "cloud", "")]
    assert bench.flow.num_open == 0


def test_a_pull_brings_features_and_says_which_are_gone(bench: Bench, tiny_bundle: Bundle) -> None:
    bench.capture("left", 0)
    bench.capture("left", 1)
    bench.step()
    bench.flow.pull(m.Pull(0, "left", [sample(1), sample(9), sample(0)]))
    (features,) = bench.port.take_up(m.Features)
    assert features.ids == [sample(1), sample(0)] and features.gone == [sample(9)]
    got = decode_rows(features.feature, bench.levels[0].feature_spec)
    np.testing.assert_array_equal(got, device_outputs(tiny_bundle, "left", [1, 0])[1])
    bench.flow.pull(m.Pull(0, "nonesuch", [sample(0)]))
    (features,) = bench.port.take_up(m.Features)
    assert (features.ids, features.feature, features.gone) == ([], None, [sample(0)])


def test_eager_by_plan_or_when_the_parent_asks(bench: Bench, tiny_bundle: Bundle) -> None:
    bench.flow.mode(m.Mode(0, True))
    bench.capture("left", 0)
    bench.step()
    (part,) = bench.port.take_up(m.Part)
    got = decode_rows(part.feature, bench.levels[0].feature_spec)
    np.testing.assert_array_equal(got, device_outputs(tiny_bundle, "left", [0])[1])
    eager = Bench(tiny_bundle, "device-left", mode="eager")
    eager.capture("left", 0)
    eager.step()
    assert eager.port.take_up(m.Part)[0].feature is not None


def test_a_verdict_comes_with_its_outputs_and_truth(bench: Bench) -> None:
    bench.capture("left", 2)
    bench.step()
    (part,) = bench.port.take_up(m.Part)
    logits = np.array([[0.0, 1.0, 3.0]], np.float32)
    bench.flow.verdict(bench.reply(part, logits), bench.clock.now_ns())
    (outcome,) = bench.port.outcomes
    assert (outcome.answer.label, outcome.truth, outcome.num_views, outcome.view) == ("cat", 2, 3, "left")
    assert outcome.answer.confidence == pytest.approx(float(np.exp(3) / np.exp([0, 1, 3]).sum()), rel=1e-5)


@pytest.mark.parametrize("aggregator_head", [False, True])
def test_without_a_parent_its_own_exit_answers(tmp_path: Any, aggregator_head: bool) -> None:
    bundle = make_tiny_bundle(tmp_path / "bundle", head=aggregator_head)
    bench = Bench(bundle, "device-middle")
    bench.port.parent = False
    bench.capture("middle", 5)
    bench.step()
    (outcome,) = bench.port.outcomes
    assert (outcome.exit, outcome.reason, outcome.degraded, outcome.num_views) == ("local", "no_parent", True, 1)
    present = np.array([[False], [True], [False]])
    expected = Oracle(bundle, engine_maker("onnxruntime")).exits(oracle_views(bundle)[:, 5:6], present)
    assert outcome.answer.index == int(expected.outputs["local"]["logits"].argmax())


def test_a_parent_lost_after_sending(bench: Bench) -> None:
    bench.capture("left", 0)
    bench.step()
    bench.capture("left", 1)
    bench.flow.parent_down()
    assert answers(bench) == [(0, "local", "no_parent"), (1, "local", "no_parent")]
    (part,) = bench.port.take_up(m.Part)
    bench.flow.verdict(bench.reply(part), bench.clock.now_ns())
    bench.step()
    assert answers(bench) == [] and bench.flow.counts["late"] == 1 and not bench.port.up


def test_each_deadline_counts_whatever_the_others_are(bench: Bench) -> None:
    bench.capture("left", 0, budget_ms=5000)
    bench.capture("left", 1, budget_ms=100)
    bench.step()
    assert bench.flow.next_deadline_ns() - bench.clock.now_ns() == 100 * MS
    bench.step(100)
    assert answers(bench) == [(1, "local", "deadline")]
    bench.step(4900)
    assert answers(bench) == [(0, "local", "deadline")]


def test_refused(bench: Bench) -> None:
    bench.capture("left", 0)
    bench.step()
    bench.flow.refused(m.Refused(0, "left", [sample(0), sample(9)], "admission", "too many"))
    bench.flow.refused(m.Refused(0, "left", [sample(0)], "admission", "too many"))
    assert answers(bench) == [(0, "local", "refused: too many")]


@pytest.mark.parametrize(
    "damage",
    [
        lambda verdict: replace(verdict, outputs={"logits": damaged(verdict.outputs["logits"])}),
        lambda verdict: replace(verdict, outputs={}),
        lambda verdict: replace(verdict, outputs={"logits": codec_for("raw").encode(np.zeros((1, 4), np.float32))}),
    ],
)
def test_a_verdict_that_cannot_be_read(bench: Bench, damage: Any) -> None:
    bench.capture("left", 0)
    bench.step()
    (part,) = bench.port.take_up(m.Part)
    bench.flow.verdict(damage(bench.reply(part)), bench.clock.now_ns())
    assert answers(bench) == [(0, "local", "bad_verdict")]


def test_a_second_verdict_changes_nothing(bench: Bench) -> None:
    bench.capture("left", 0)
    bench.step()
    (part,) = bench.port.take_up(m.Part)
    for _ in range(2):
        bench.flow.verdict(bench.reply(part), bench.clock.now_ns())
    assert answers(bench) == [(0, "cloud", "")]


def test_the_same_view_of_a_sample_is_in_flight_once(bench: Bench) -> None:
    bench.capture("left", 0)
    with pytest.raises(AdmissionRefused, match="in flight"):
        bench.capture("left", 0)
    bench.step()
    (part,) = bench.port.take_up(m.Part)
    assert part.ids == [sample(0)]


def test_no_more_is_held_than_the_bound(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_module, "MAX_HELD", 3)
    for seq in range(5):
        bench.capture("left", seq)
    assert answers(bench) == [(0, "local", "overrun"), (1, "local", "overrun")]
    bench.step()
    assert bench.port.take_up(m.Part)[0].ids == [sample(2), sample(3), sample(4)]


def test_stopping_answers_what_is_held(bench: Bench) -> None:
    bench.capture("left", 0)
    bench.flow.stop()
    assert answers(bench) == [(0, "local", "stopped")]
    bench.step()
    assert not bench.port.up


def test_ledger_adds_up(tiny_bundle: Bundle) -> None:
    bench = Bench(tiny_bundle, "device-left", tick_ns=10)
    bench.capture("left", 0)
    bench.step(3)
    bench.clock.advance(20 * MS)
    (part,) = bench.port.take_up(m.Part)
    bench.flow.verdict(bench.reply(part, residence_ns=15 * MS), bench.clock.now_ns())
    own, above = bench.port.outcomes[0].ledger
    assert above.residence_ns == 15 * MS
    assert own.named()["send"] == pytest.approx(5 * MS, abs=200)
    assert own.named()["queue"] == pytest.approx(3 * MS, abs=200)
    assert 0 <= own.residence_ns - sum(own.spans_ns) - above.residence_ns < 200


def test_memory_is_bounded_by_what_is_in_flight(bench: Bench) -> None:
    for seq in range(20_000):
        bench.capture("left", seq)
        if seq % 8 == 7:
            bench.step()
            for part in bench.port.take_up(m.Part):
                bench.flow.verdict(bench.reply(part), bench.clock.now_ns())
            bench.port.outcomes.clear()
    assert bench.flow.num_open == 0
    assert not any(bench.flow._unsent.values())
    assert len(bench.flow._timers._heap) <= 1025


def test_timers_fire_in_order_and_forget_what_is_gone() -> None:
    clock = TickingClock()
    alive = {1, 2}
    timers: Timers[int] = Timers(alive)
    for key in (2, 1, 3):
        timers.add(key * 10, key, "deadline")
    assert timers.next_ns == 10
    assert list(timers.due(clock.now_ns() + 25)) == [(1, "deadline"), (2, "deadline")]
    for n in range(3000):
        timers.add(1000 + n, 4, "deadline")
    assert len(timers._heap) <= 1025


def test_rows_gather_while_the_parent_is_behind(bench: Bench) -> None:
    bench.port.is_congested = True
    for seq in range(5):
        bench.capture("left", seq)
    bench.step()
    assert bench.port.take_up(m.Part) == []
    bench.port.is_congested = False
    bench.step()
    (part,) = bench.port.take_up(m.Part)
    assert [sample.seq for sample in part.ids] == [0, 1, 2, 3, 4]
