"""`tierline bench latency`: a hierarchy under a steady load, and what its answers cost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from tierline.cli.supervisor import Fleet
from tierline.cli.trial.answers import Answers
from tierline.cli.trial.demo import ASSETS, SAMPLES
from tierline.cli.trial.hierarchy import samples_uri, trial_spec
from tierline.core.bundle import Bundle
from tierline.core.catalog import nearest
from tierline.core.errors import DataError, UsageError
from tierline.core.plan import Mode
from tierline.core.telemetry.environment import environment
from tierline.core.telemetry.report import LatencyReport
from tierline.core.uri import open_source


@dataclass(frozen=True)
class LatencyOptions:
    """What the user asked for."""

    bundle: Path | None
    samples: Path | None
    rate: float
    in_flight: int
    seconds: float
    warmup: float
    link: str
    mode: str
    tls: bool


def measure_latency(options: LatencyOptions, run_dir: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the load; the report as JSON values."""
    if options.mode not in get_args(Mode):
        raise UsageError(f"--mode {options.mode}: no such mode{nearest(options.mode, list(get_args(Mode)))}")
    bundle = Bundle.open(options.bundle or ASSETS)
    samples = (options.samples or bundle.folder / SAMPLES).absolute()
    if not samples.exists():
        raise DataError(f"{samples}: no such file; name one by --samples (tierline train --samples N writes one)")
    if len(bundle.manifest.views) > 1 and samples.is_dir():
        raise UsageError(f"--samples {samples}: a folder shows one view, the Bundle has {len(bundle.manifest.views)}")
    asyncio.run(open_source(samples_uri(samples, bundle), bundle.manifest.views[0], 0).check())
    in_flight = 4096 if options.rate and options.in_flight == 1 else options.in_flight
    spec, files = trial_spec(
        bundle,
        samples,
        run_dir,
        link=options.link,
        tls=options.tls,
        rate=options.rate,
        in_flight=in_flight,
        mode=options.mode,
    )
    answers = Answers(files)
    with Fleet(spec, run_dir) as fleet:
        say(f"{len(spec.hierarchy.nodes)} processes; measuring {options.seconds:g} s after {options.warmup:g} s")
        _wait(fleet, options.warmup)
        answers.poll()
        first = {view: len(records) for view, records in answers.records.items()}
        started = time.monotonic()
        _wait(fleet, options.seconds)
        answers.poll()
        elapsed = time.monotonic() - started
    counted = [r for view, records in answers.records.items() for r in records[first[view] :]]
    if not counted:
        raise DataError(f"no sample was answered within {options.seconds:g} s; measure longer, or ask for less")
    report: dict[str, Any] = LatencyReport.of(counted).to_dict()
    return {
        **report,
        "samples_per_s": round(len(counted) / len(files) / elapsed, 1),
        "load": {"rate": options.rate, "in_flight": in_flight, "link": options.link, "mode": options.mode},
        "environment": environment(),
    }


def _wait(fleet: Fleet, seconds: float) -> None:
    """Let it run; a node that ends is an error."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(0.2, left))
        fleet.check()
