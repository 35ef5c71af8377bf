"""`tierline tune`: which cut, engine, codec and thresholds, from what was measured."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tierline.cli.commands.profile import check_precisions
from tierline.cli.identity import IdentityOption, identity
from tierline.cli.output import Format, FormatOption, OutputOption, SetOption, emit, write
from tierline.core.errors import UsageError

if TYPE_CHECKING:
    from tierline.cloud.tuner.choice import Choice, Proposal
    from tierline.cloud.tuner.job import Job
    from tierline.core.profile import Profile

app = typer.Typer(rich_markup_mode=None, add_completion=False)

_MOST_ROWS = 20
_RANGES_S = 120.0
"""Longest time to find out for which rates, round trips and speeds the choice holds."""


@app.command()
def tune(
    file: Annotated[Path, typer.Argument(help="hierarchy.toml: who exists, the model, and the table [goal].")],
    profile: Annotated[Path | None, typer.Option("--profile", help="What `tierline profile --out` wrote.")] = None,
    address: Annotated[
        str, typer.Option("--from", metavar="ADDRESS", help="Measure the hierarchy that runs under this root instead.")
    ] = "",
    overrides: SetOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="New folder for the chosen Bundle, its Plan, and what explains it.")
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option("--samples", help="images and labels (.npz) to try codecs on. Default: those in the Bundle."),
    ] = None,
    answers: Annotated[
        Path | None, typer.Option("--answers", help="Answers (.jsonl): what nodes spend on a sample besides.")
    ] = None,
    codec: Annotated[
        list[str] | None, typer.Option("--codec", help="Codec token to try; repeatable. Default: all measured.")
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option("--precision", help="Besides float32, to compute Sections in; repeatable. Default: all measured."),
    ] = None,
    max_age_h: Annotated[float, typer.Option("--max-age", min=0, help="Hours after which a Profile is stale.")] = 24.0,
    baselines: Annotated[bool, typer.Option("--baselines", help="Also what other methods would choose.")] = False,
    picture: Annotated[Path | None, typer.Option("--picture", help="Draw the Pareto front (.svg).")] = None,
    state_dir: IdentityOption = None,
    form: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> None:
    """Search cuts, engines, codecs, exits and thresholds together; print the Pareto front and the choice."""
    from tierline.cli.folders import check_file, check_new_folder
    from tierline.cli.trial.training import require_torch
    from tierline.cloud.hierarchy import find_bundle, load_file
    from tierline.cloud.tuner.goal import Goal
    from tierline.cloud.tuner.job import Job, check_profile, keep
    from tierline.cloud.tuner.validity import ranges
    from tierline.cloud.tuner.world import Deadline, Worlds
    from tierline.core.bundle import Bundle

    if (profile is None) == (not address):
        raise UsageError("give either --profile FILE or --from ADDRESS: a Profile, or where to measure one")
    for flag, path in (("--output", output), ("--picture", picture)):
        check_file(flag, path)
    if out is not None:
        require_torch("--out")
        check_new_folder("--out", out)
    loaded = load_file(file, overrides=overrides or [])
    bundle = Bundle.open(find_bundle(loaded))
    measured = (
        _measure(address, tuple(codec or ()), check_precisions(precision), state_dir)
        if profile is None
        else _read(profile)
    )
    hierarchy, goal = loaded.value.hierarchy(), loaded.value.goal or Goal()
    check_profile(measured, bundle, hierarchy, max_age_h * 3600, time.time())
    effects = _effects(bundle, measured, codec, precision, samples)
    job = Job(bundle, measured, hierarchy, goal, effects, loaded.value.join, _handling(answers))
    started = time.monotonic()
    proposal = job.propose()
    _say(
        f"{proposal.num_priced} of {proposal.num_choices} choices priced in {time.monotonic() - started:.1f} s; "
        f"{'exact' if proposal.exact else 'not exact'}: {proposal.space}"
    )
    for left_out in proposal.left_out:
        _say(f"left out: {left_out}")
    valid = ranges(Worlds(job, Deadline(_RANGES_S)), proposal.chosen.choice, say=_say)
    rows, document = _rows(job, proposal, baselines)
    document["valid"] = valid
    if picture is not None:
        write(_picture(proposal), picture, "--picture")
    emit(rows, form, output, document)
    _say(f"chosen: {proposal.chosen.choice.told()}")
    if out is not None:
        derived, plan = keep(job, proposal, out, valid)
        loaded_copy = _hierarchy_file(out, loaded.value, proposal.chosen.choice)
        _say(f"Bundle {derived.digest[:12]} and plan {plan.digest()[:12]} in {out}; run it: tierline up {loaded_copy}")


def _read(path: Path) -> Profile:
    from tierline.core.errors import PlanError
    from tierline.core.profile import parse_profile

    try:
        return parse_profile(path.read_bytes(), str(path))
    except OSError as error:
        raise PlanError(f"{path}: cannot be read ({error.strerror}); `tierline profile --out` writes one") from None


def _measure(address: str, codecs: tuple[str, ...], precisions: tuple[str, ...], state_dir: Path | None) -> Profile:
    from tierline.core.link.ask import ask_profile
    from tierline.core.link.fleet import ProfileStep, ProfileWish

    def said(step: ProfileStep) -> None:
        _say(f"{step.node or 'root'}: {step.state}")

    wish = ProfileWish(codecs=codecs, precisions=precisions)
    return asyncio.run(ask_profile(address, wish, identity(state_dir), said=said))


def _effects(
    bundle: Any, measured: Profile, codec: list[str] | None, precision: list[str] | None, samples: Path | None
) -> Any:
    from tierline.cli.images import images_of
    from tierline.cloud.tuner.tryout import measure_effects
    from tierline.kernels.build import cache_dir

    tokens = dict.fromkeys(t.token for node in measured.nodes.values() for t in node.codecs)
    if codec:
        missing = [token for token in codec if token not in tokens]
        if missing:
            raise UsageError(f"--codec {missing[0]}: was not measured; the Profile has {', '.join(tokens)}")
        tokens = dict.fromkeys(codec)
    precisions = dict.fromkeys(t.precision for node in measured.nodes.values() for t in node.sections)
    for name in check_precisions(precision):
        if name not in precisions:
            raise UsageError(f"--precision {name}: was not measured; the Profile has {', '.join(precisions)}")
    keep = cache_dir() / "effects"
    images, truths = images_of(samples) if samples is not None else (None, None)
    tried = tuple(precision or precisions)
    return measure_effects(bundle, tokens, precisions=tried, images=images, truths=truths, keep=keep, say=_say)


def _handling(answers: Path | None) -> dict[str, float]:
    from tierline.cli.images import records_of
    from tierline.cloud.tuner.handling import handling

    return handling(records_of(answers)) if answers is not None else {}


def _rows(job: Job, proposal: Proposal, with_baselines: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What is printed, and the JSON document."""
    import msgspec

    from tierline.cloud.tuner.choice import row

    document: dict[str, Any] = msgspec.to_builtins(proposal)
    front = proposal.front
    step = max(1, -(-len(front) // _MOST_ROWS))
    if step > 1:
        _say(f"{len(front)} choices on the front, every {step}th is shown; --format json has all")
    rows = [{"what": "chosen", **row(proposal.chosen)}]
    rows += [{"what": "front", **row(point)} for point in front[::step]]
    if with_baselines:
        document["baselines"] = {}
        for name, found in job.baselines().items():
            if isinstance(found, str):
                _say(f"{name}: {found}")
                document["baselines"][name] = {"error": found}
                continue
            rows.append({"what": name, **row(found)})
            document["baselines"][name] = msgspec.to_builtins(found)
    return rows, document


def _picture(proposal: Proposal) -> str:
    """Mean latency by quality loss, a series per way to cut."""
    from tierline.cli.chart import Axis, Series, chart
    from tierline.cloud.tuner.choice import row

    groups: dict[str, list[Any]] = {}
    for point in proposal.front:
        groups.setdefault(" ".join(f"{t.value}..{c}" for t, c in point.choice.cuts.items()), []).append(point)

    def at(point: Any) -> tuple[float, float]:
        return point.predicted.latency_mean_ms, 100 * point.predicted.quality_loss

    def tip(point: Any) -> str:
        return "; ".join(f"{key} {value}" for key, value in row(point).items())

    series = [
        Series(name, [at(p) for p in points], [tip(p) for p in points], line=False) for name, points in groups.items()
    ]
    series.append(Series("chosen", [at(proposal.chosen)], [tip(proposal.chosen)], large=True))
    x, y = Axis("mean latency, ms (predicted)"), Axis("quality loss, points")
    return chart(series, x, y, "Pareto front: latency, bytes and quality; nothing beats these in all three")


def _hierarchy_file(out: Path, file: Any, choice: Choice) -> Path:
    """The hierarchy with the chosen Bundle, engines and precisions, for `tierline up`."""
    import msgspec

    from tierline.cli.toml import dumps
    from tierline.cloud.tuner.apply import with_engines
    from tierline.cloud.tuner.job import BUNDLE

    path, model = out / "hierarchy.toml", str((out / BUNDLE).absolute())
    nodes = with_engines(file.hierarchy(), choice).nodes
    path.write_text(dumps(msgspec.structs.replace(file, model=model, node=nodes, tuned=str(out.absolute()))), "utf-8")
    return path


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
