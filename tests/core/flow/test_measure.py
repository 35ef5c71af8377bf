"""Measuring: warm-up ends where it is stable, median and spread are of what came after it, all of it is bounded."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from tests.support.onnx_models import gemm

from tierline.core import catalog
from tierline.core.clock import MonotonicClock
from tierline.core.coding import codec_for
from tierline.core.errors import CodecError, ShapeMismatch, UnknownCodec
from tierline.core.flow.measure import MIN_RUNS, WINDOW, Limits, settle, time_codec, time_engine

MS = 1_000_000
QUICK = Limits(warm_s=0.01, run_s=0.02)


class Machine:
    """Virtual time: each run takes the next of given durations."""

    def __init__(self, durations_ns: Iterable[int]) -> None:
        self.ns, self.num_runs = 0, 0
        self._durations: Iterator[int] = iter(durations_ns)

    def now_ns(self) -> int:
        return self.ns

    def run(self) -> None:
        self.ns += next(self._durations)
        self.num_runs += 1


def slowing_down(first_ns: int, last_ns: int, num: int) -> Iterator[int]:
    return itertools.chain(np.linspace(first_ns, last_ns, num).astype(int).tolist(), itertools.repeat(last_ns))


def test_runs_while_it_warms_up_do_not_count() -> None:
    machine = Machine(slowing_down(40 * MS, 10 * MS, 30))
    timing = settle(machine.run, machine, Limits(warm_s=60, run_s=0.5))
    assert (timing.p50_ns, timing.spread_ns, timing.is_stable) == (10 * MS, 0, True)
    assert timing.num_runs == 50
    assert machine.num_runs - timing.num_runs >= 30


def test_the_median_and_the_quartiles_are_of_the_runs_that_count() -> None:
    machine = Machine(itertools.cycle([9 * MS, 10 * MS, 11 * MS, 10 * MS]))
    timing = settle(machine.run, machine, Limits(warm_s=1, run_s=1, max_runs=40))
    assert timing.num_runs == 40
    assert timing.p50_ns == 10 * MS
    assert timing.spread_ns == pytest.approx(MS / 2, abs=MS / 2 + 1)
    assert timing.is_stable


def test_what_never_settles_is_measured_in_bounded_time_and_said_to_be_unstable() -> None:
    machine = Machine(itertools.accumulate(itertools.repeat(5 * MS)))
    timing = settle(machine.run, machine, Limits(warm_s=1, run_s=1))
    assert not timing.is_stable
    assert timing.num_runs >= MIN_RUNS
    assert machine.ns < 5_000 * MS


def test_a_run_longer_than_all_limits_is_still_measured() -> None:
    machine = Machine(itertools.repeat(2_000 * MS))
    timing = settle(machine.run, machine, Limits(warm_s=0.5, run_s=0.5))
    assert (timing.p50_ns, timing.num_runs) == (2_000 * MS, MIN_RUNS)
    assert machine.num_runs == WINDOW + MIN_RUNS


def test_who_else_needs_the_machine_is_given_time_after_every_run() -> None:
    machine, told = Machine(itertools.repeat(MS)), list[int]()
    timing = settle(machine.run, machine, Limits(warm_s=1, run_s=1, max_runs=10), told.append)
    assert told == [MS] * (timing.num_runs + 2 * WINDOW)


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_a_section_is_timed_on_a_batch_of_given_rows(batch: int) -> None:
    seen = list[tuple[int, ...]]()
    engine = catalog.make("engine", "onnxruntime", model=gemm(), name="gemm")
    run = engine.run

    def spy(inputs: dict[str, np.ndarray]) -> object:
        seen.append(inputs["x"].shape)
        return run(inputs)

    engine.run = spy
    timing = time_engine(engine, np.ones((3, 64), np.float32), batch, MonotonicClock(), QUICK)
    assert set(seen) == {(batch, 64)}
    assert 0 < timing.p50_ns < 100 * MS
    assert timing.num_runs >= MIN_RUNS


def test_a_codec_is_timed_and_weighed_on_every_row() -> None:
    rows = np.zeros((6, 400), np.float32)
    rows[3:] = np.random.default_rng(1).normal(size=(3, 400))
    token = "sparse_bitmap+float16"
    sizes = [codec_for(token).encode(row[np.newaxis]).num_bytes for row in rows]
    assert len(set(sizes)) > 1
    time = time_codec("pool1", token, rows, MonotonicClock(), QUICK)
    assert (time.cut, time.token, time.num_rows) == ("pool1", token, 6)
    assert time.num_bytes == np.mean(sizes)
    assert time.max_bytes == max(sizes)
    assert time.encode_ns > 0
    assert time.decode_ns > 0


@pytest.mark.parametrize(
    ("token", "error"), [("jpeg", ShapeMismatch), ("no_such", UnknownCodec), ("affine:4", CodecError)]
)
def test_a_codec_that_has_no_place_for_a_feature_says_so(token: str, error: type[Exception]) -> None:
    rows = np.full((2, 8), np.nan, np.float32)
    with pytest.raises(error):
        time_codec("pool1", token, rows, MonotonicClock(), QUICK)
