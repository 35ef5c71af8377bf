"""`tierline demo`: train or take a Bundle, run it as real processes, lose a device, report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tierline.cli.folders import fresh_run_dir
from tierline.cli.supervisor import Fleet
from tierline.cli.trial import measure
from tierline.cli.trial.answers import Answers, Record
from tierline.cli.trial.hierarchy import device_of, trial_hierarchy, trial_spec
from tierline.cli.trial.training import announce, require_torch
from tierline.core.bundle import Bundle
from tierline.core.errors import NodeFailed, UsageError
from tierline.core.flow.knobs import one_codec
from tierline.core.link.ask import ask_status
from tierline.core.link.tls import TlsFiles
from tierline.core.plan import make_plan
from tierline.core.telemetry.environment import environment

Say = Callable[[str], None]

ASSETS = Path(__file__).parents[1] / "assets" / "digits"
"""The Bundle in the wheel: `tierline train --data digits --seed 0 --out ... --samples 360`."""
SAMPLES = "samples.npz"
POLL_S = 0.05
STALLED_S = 60.0
"""A run that answers nothing for so long has failed."""


@dataclass(frozen=True)
class DemoOptions:
    """What the user asked for."""

    data: str = "digits"
    devices: int = 6
    retrain: bool = False
    link: str = ""
    tls: bool = False
    seed: int = 0
    num_samples: int = 2000
    codec: str = ""
    """Of all features on all links; empty: what the Bundle says."""


def prepare(options: DemoOptions, run_dir: Path, say: Say) -> tuple[Bundle, Path]:
    """The Bundle and the samples. Raises UsageError, MissingDependency, DataError."""
    if not options.retrain:
        if options.data != "digits" or options.devices != 6 or options.seed != 0:
            raise UsageError("the Bundle that comes with tierline is digits on 6 devices; add --retrain for another")
        return Bundle.open(ASSETS), ASSETS / SAMPLES
    require_torch("--retrain")
    from tierline.models.make import train_bundle, write_samples

    say(f"training on {options.data}, seed {options.seed}")
    started = time.monotonic()

    bundle, dataset = train_bundle(
        options.data,
        run_dir / "bundle",
        devices=options.devices or None,
        seed=options.seed,
        progress=announce(say),
        report=_reading(say),
        command="tierline demo --retrain",
    )
    samples = run_dir / SAMPLES
    write_samples(samples, dataset, options.num_samples)
    say(f"trained in {time.monotonic() - started:.0f} s; Bundle {bundle.digest[:12]} in {bundle.folder}")
    return bundle, samples


def run_demo(options: DemoOptions, run_dir: Path, say: Say) -> dict[str, Any]:
    """The whole demonstration; the report as JSON values."""
    fresh_run_dir(run_dir)
    bundle, samples = prepare(options, run_dir, say)
    views, codecs = bundle.manifest.views, one_codec(options.codec, bundle.manifest)
    thresholds = make_plan(trial_hierarchy(bundle), bundle.manifest, bundle.digest).thresholds
    alone = measure.OneProcess(bundle, samples, thresholds, options.num_samples)
    num_samples = len(alone.labels)
    spec, files = trial_spec(
        bundle, samples, run_dir, num_samples=num_samples, link=options.link, tls=options.tls, codecs=codecs
    )
    answers = Answers(files)
    kept, lost = views[:-1], views[-1]
    say(f"starting {len(spec.hierarchy.nodes)} processes; logs in {run_dir / 'logs'}")
    with Fleet(spec, run_dir) as fleet:
        say(f"all ready; sending {num_samples} held-out samples through them")
        first = _until(fleet, answers, views, num_samples, {}, say)
        status = asyncio.run(_status(fleet.address(fleet.root), _identity(run_dir) if options.tls else None))
        result = measure.report(bundle, thresholds, first, alone, status, environment(), options.codec)
        if options.link:
            result["bytes_per_sample"]["link"] = options.link
        if kept:
            say(f"killing {device_of(lost)}; the others go on")
            fleet.kill(device_of(lost))
            answers.poll()
            after = {view: len(records) for view, records in answers.records.items()}
            second = _until(fleet, answers, kept, num_samples, after, say)
            result["accuracy"]["one_device_lost"] = measure.accuracy(measure.records(second))
    return result


def _until(
    fleet: Fleet,
    answers: Answers,
    views: Sequence[str],
    num_samples: int,
    after: Mapping[str, int],
    say: Say,
) -> dict[str, dict[int, Record]]:
    """Wait until every one of these views got an answer for every sample from just these views.

    The first such records by view, then sample, each view's `after` first ones left out.
    """
    moved, seen, said = time.monotonic(), -1, 0
    while True:
        answers.poll()
        first = answers.samples(views[0], num_samples, len(views), after.get(views[0], 0))
        if len(first) >= num_samples:  # only now look at the others: they answer at about the same time
            found = {view: answers.samples(view, num_samples, len(views), after.get(view, 0)) for view in views}
            if all(len(records) >= num_samples for records in found.values()):
                say(f"  {num_samples} of {num_samples}")
                return found
        if len(first) > seen:
            moved, seen = time.monotonic(), len(first)
        if seen - said >= num_samples // 4:
            said = seen
            say(f"  {seen} of {num_samples}")
        if time.monotonic() - moved > STALLED_S:
            raise NodeFailed(f"no sample was answered for {STALLED_S:g} s; see {fleet.logs}")
        time.sleep(POLL_S)


async def _status(address: str, tls: TlsFiles | None) -> dict[str, Any]:
    """Counters reach the root with the next heartbeats: one for each level below it."""
    await asyncio.sleep(2.2)
    return await ask_status(address, tls)


def _identity(run_dir: Path) -> TlsFiles:
    return TlsFiles.of_state(run_dir / "state" / "edge")


def _reading(say: Say) -> Callable[[str, float], None]:
    """Progress of reading a data set, in quarters."""
    last: dict[str, float] = {}

    def report(what: str, share: float) -> None:
        if share >= last.get(what, -1.0) + 0.25:
            last[what] = share
            say(f"  {what}: {100 * share:.0f} %")

    return report
