"""How long something takes, measured so that the number can be believed: warmed up until stable, median and spread.

Pure functions of what is run and of a clock. B is the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle

import numpy as np

from tierline.core.coding import codec_for
from tierline.core.profile import CodecTime
from tierline.core.protocols import Clock, Engine
from tierline.core.types import Array, TensorSpec

WINDOW = 5
"""Runs whose median is compared with that of the runs before them."""
STABLE = 0.05
"""Two windows whose medians differ by no more than this share: what is run has warmed up."""

Pause = Callable[[int], None]
"""Told how long the last run took, in nanoseconds; may wait, for whoever else needs the machine."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one measurement may cost. Whatever the limits, it runs at least MIN_RUNS times."""

    warm_s: float = 0.5
    run_s: float = 0.5
    max_runs: int = 100


MIN_RUNS = 3


@dataclass(frozen=True, slots=True)
class Timing:
    """Of one kind of run."""

    p50_ns: int
    spread_ns: int
    """Upper less lower quartile."""
    num_runs: int
    is_stable: bool


def settle(run: Callable[[], object], clock: Clock, limits: Limits, pause: Pause = lambda ns: None) -> Timing:
    """Run until the median of a window agrees with that of the window before it, then measure."""

    def timed() -> int:
        began_ns = clock.now_ns()
        run()
        took_ns = clock.now_ns() - began_ns
        pause(took_ns)
        return took_ns

    is_stable, former_ns, deadline_ns = False, 0.0, clock.now_ns() + int(limits.warm_s * 1e9)
    while not is_stable and clock.now_ns() < deadline_ns:
        median_ns = float(np.median([timed() for _ in range(WINDOW)]))
        is_stable = abs(median_ns - former_ns) <= STABLE * median_ns
        former_ns = median_ns
    taken_ns: list[int] = []
    deadline_ns = clock.now_ns() + int(limits.run_s * 1e9)
    while len(taken_ns) < MIN_RUNS or (len(taken_ns) < limits.max_runs and clock.now_ns() < deadline_ns):
        taken_ns.append(timed())
    lower, median, upper = np.percentile(taken_ns, (25, 50, 75))
    return Timing(int(median), int(upper - lower), len(taken_ns), is_stable)


def time_engine(
    engine: Engine, rows_B: Array, batch: int, clock: Clock, limits: Limits, pause: Pause = lambda ns: None
) -> Timing:
    """Time a Section or head on a batch made of `rows_B`, over again where it needs more. Raises EngineError."""
    (name,) = engine.spec.inputs
    x_B = np.ascontiguousarray(np.resize(rows_B, (batch, *rows_B.shape[1:])))
    return settle(lambda: engine.run({name: x_B}), clock, limits, pause)


def time_codec(
    cut: str, token: str, rows_B: Array, clock: Clock, limits: Limits, pause: Pause = lambda ns: None
) -> CodecTime:
    """Time a codec on each row as a message of its own. Raises CodecError, ShapeMismatch for what it does not take."""
    codec, spec = codec_for(token), TensorSpec(rows_B.dtype.name, rows_B.shape[1:])
    payloads = [codec.encode(row[np.newaxis]) for row in rows_B]
    sizes = [payload.num_bytes for payload in payloads]
    rows, coded = cycle(rows_B), cycle(payloads)
    encode = settle(lambda: codec.encode(next(rows)[np.newaxis]), clock, limits, pause)
    decode = settle(lambda: codec.decode(next(coded), spec), clock, limits, pause)
    return CodecTime(cut, token, encode.p50_ns, decode.p50_ns, float(np.mean(sizes)), max(sizes), len(rows_B))
