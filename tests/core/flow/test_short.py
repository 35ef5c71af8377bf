"""The short way gives the answers of the long way, each once, and leaves it whatever has to wait."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from bench import Bench, sample

from tierline.core.bundle import Bundle
from tierline.core.flow.coding import codec_for
from tierline.core.link import messages as m


def cloud(bundle: Bundle, *, is_slow: bool = False, **settings: Any) -> Bench:
    bench = Bench(bundle, "cloud", tick_ns=7, **settings)
    bench.connect("edge")
    bench.port.is_slow = is_slow
    return bench


def fused(bench: Bench, *seqs: int, budget_ms: float = 1000.0) -> m.Part:
    """What an edge node sends up: features that depend on the sample."""
    spec = bench.levels[1].fused_feature_spec()
    rows = [np.where(np.random.default_rng(seq).random(spec.shape) < 0.5, -1, 1) for seq in seqs]
    return m.Part(
        level=1,
        name="edge",
        ids=[sample(seq) for seq in seqs],
        plan=bench.plan.version,
        budget_ms=[budget_ms] * len(seqs),
        outputs={},
        feature=codec_for("bitplane").encode(np.stack(rows).astype(spec.dtype)),
        fused=True,
        num_views=[1 + seq % 3 for seq in seqs],
    )


def answers(bench: Bench, *parts: m.Part) -> list[m.Body]:
    """Everything the edge node hears."""
    for part in parts:
        bench.flow.part("edge", part, bench.clock.now_ns())
        bench.flow.pump()
    bench.port.finish()
    bench.flow.pump()
    heard = [body for _, body in bench.port.down]
    bench.port.down.clear()
    return heard


def without_times(body: m.Body) -> m.Body:
    assert isinstance(body, m.Verdict)
    hops = [m.HopTimes(hop.node, hop.tier, [() for _ in hop.rows_ns]) for hop in body.hops]
    return replace(body, ids=list(body.ids), num_views=list(body.num_views), hops=hops)


@pytest.mark.parametrize("seqs", [(0,), (1, 2, 3)])
def test_both_ways_tell_the_same(tiny_bundle: Bundle, seqs: tuple[int, ...]) -> None:
    short, long = cloud(tiny_bundle), cloud(tiny_bundle, is_slow=True)
    (quick,), (slow,) = answers(short, fused(short, *seqs)), answers(long, fused(long, *seqs))
    assert without_times(quick) == without_times(slow)
    assert short.flow.counts == long.flow.counts and short.flow.num_open == long.flow.num_open == 0


def test_the_ledger_explains_the_residence(tiny_bundle: Bundle) -> None:
    bench = cloud(tiny_bundle)
    (verdict,) = answers(bench, fused(bench, 0, 1))
    assert isinstance(verdict, m.Verdict)
    assert all(row[0] == sum(row[1:]) > 0 for row in verdict.hops[0].rows_ns)


@pytest.mark.parametrize("first_is_slow", [False, True])
def test_a_duplicate_gets_the_same_verdict(tiny_bundle: Bundle, first_is_slow: bool) -> None:
    """Whichever way the first went: its message gets its verdict, and the Section does not run again."""
    bench = cloud(tiny_bundle, is_slow=first_is_slow)
    (first,) = answers(bench, fused(bench, 5))
    bench.port.is_slow = False
    (again,) = answers(bench, fused(bench, 5))
    assert without_times(first) == without_times(again)
    assert bench.flow.counts["batches"] == 1 and bench.flow.counts["late"] == 1


def test_what_is_known_in_part_goes_the_long_way(tiny_bundle: Bundle) -> None:
    """Rows of one message, of which one was answered before: one verdict for each row."""
    bench = cloud(tiny_bundle)
    answers(bench, fused(bench, 1))
    told = [body for body in answers(bench, fused(bench, 1, 2)) if isinstance(body, m.Verdict)]
    assert sorted(id_.seq for verdict in told for id_ in verdict.ids) == [1, 2]


def test_a_row_twice_in_a_message_is_answered_once(tiny_bundle: Bundle) -> None:
    bench = cloud(tiny_bundle)
    (verdict,) = answers(bench, fused(bench, 4, 4))
    assert isinstance(verdict, m.Verdict) and list(verdict.ids) == [sample(4)]


def test_rows_without_time_are_refused(tiny_bundle: Bundle) -> None:
    bench = cloud(tiny_bundle)
    part = fused(bench, 0, budget_ms=0.0)
    bench.flow.part("edge", part, bench.clock.now_ns())
    bench.flow.expire(bench.clock.now_ns())
    (refused,) = answers(bench)
    assert isinstance(refused, m.Refused) and refused.code == "timeout"


def test_rows_wait_behind_a_batch_that_runs(tiny_bundle: Bundle) -> None:
    """A Section that became quick overtakes nobody: what waits and what comes share the next batch."""
    bench = cloud(tiny_bundle)
    bench.port.deferred = True
    for seq in (0, 1):
        bench.flow.part("edge", fused(bench, seq), bench.clock.now_ns())
        bench.flow.pump()
    bench.port.deferred = False
    told = answers(bench, fused(bench, 2))
    assert [[id_.seq for id_ in body.ids] for body in told if isinstance(body, m.Verdict)] == [[0, 1, 2]]
    assert bench.flow.counts["batches"] == 2


def test_more_rows_than_a_batch_holds(tiny_bundle: Bundle) -> None:
    bench = cloud(tiny_bundle, max_batch=2)
    answers(bench, fused(bench, 0, 1, 2))
    assert bench.flow.counts["batches"] == 2 and bench.flow.counts["batched"] == 3


def test_an_engine_that_fails_leaves_the_answer_to_the_sender(tiny_bundle: Bundle) -> None:
    bench = cloud(tiny_bundle)
    bench.port.fails = True
    (refused,) = answers(bench, fused(bench, 0))
    assert isinstance(refused, m.Refused) and refused.message == "engine"
