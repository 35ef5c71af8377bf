"""`tierline explain`: why this Plan, which knob would change it, and why a sample left where it did."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tierline.cli.output import Format, FormatOption, OutputOption, emit
from tierline.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from tierline.cloud.tuner.choice import Proposal
    from tierline.cloud.tuner.job import Job

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def explain(
    plan: Annotated[Path, typer.Argument(help="Folder that `tierline tune --out` wrote.")],
    what_if: Annotated[
        list[str] | None,
        typer.Option(
            "--what-if",
            metavar="KEY=VALUE",
            help="link=lte, link.NODE=3g, slower.NODE=2, or a key of [goal]; repeatable.",
        ),
    ] = None,
    sample: Annotated[str, typer.Option("--sample", help="Why SEQ or ORIGIN/EPOCH/SEQ left where it did.")] = "",
    answers: Annotated[Path | None, typer.Option("--answers", help="Answers (.jsonl) with the sample.")] = None,
    samples: Annotated[
        Path | None, typer.Option("--samples", help="The images (.npz) that the source reads, for the exact scores.")
    ] = None,
    form: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> None:
    """Say why a Plan was chosen and what would change it."""
    from tierline.cloud.tuner.job import kept_in, planned_in

    job, proposal = kept_in(plan)
    if sample:
        if answers is None:
            raise UsageError("--sample: give --answers FILE, what the device's sink wrote")
        _told([{"why": line} for line in _sample(job, proposal, sample, answers, samples)], form, output)
    elif what_if:
        _told(_what_if(job, proposal, what_if), form, output)
    else:
        _told(_why(job, proposal, planned_in(plan).valid), form, output)


def _told(rows: list[dict[str, Any]], form: Format, output: Path | None) -> None:
    emit(rows, form, output)


def _why(job: Job, proposal: Proposal, valid: Mapping[str, tuple[float, float]]) -> list[dict[str, Any]]:
    """Every stage on stderr; a row for the choice, and one for the best with each knob turned."""
    from tierline.cloud.tuner.choice import row
    from tierline.cloud.tuner.explain import knobs, stages_told
    from tierline.cloud.tuner.validity import MARGIN, told

    for stage in stages_told(job, proposal.chosen.choice):
        _say("; ".join(f"{key} {value}" for key, value in stage.items() if value != ""))
    limits = ", ".join(f"{name} <= {limit:g}" for name, limit in proposal.goal.limits().items()) or "no limits"
    _say(f"goal: least {proposal.goal.minimise}, {limits}; exact: {proposal.exact}; {proposal.space}")
    for name, (low, high) in valid.items():
        _say(f"{name}: nothing is better by more than {100 * MARGIN:g} % for {told(name, low, high)}")
    chosen = getattr(proposal.chosen.predicted, proposal.goal.minimise)
    rows = [{"knob": "as chosen", "worse_by": 0.0, **row(proposal.chosen)}]
    for knob in knobs(job, proposal):
        if knob.point is None:
            _say(f"{knob.knob}: no other setting meets the goal")
            continue
        worse = getattr(knob.point.predicted, proposal.goal.minimise) - chosen
        rows.append({"knob": knob.knob, "worse_by": round(worse, 4), **row(knob.point)})
    return rows


def _what_if(job: Job, proposal: Proposal, changes: list[str]) -> list[dict[str, Any]]:
    from tierline.cli.relay.profile import parse_link
    from tierline.cloud.tuner.choice import row
    from tierline.cloud.tuner.explain import what_if

    links = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if equals and key.partition(".")[0] == "link":
            link = parse_link(value)
            links[value] = (link.rtt_ms, link.mbit * 1e6)
    other = what_if(job, changes, links).propose()
    return [{"world": "as measured", **row(proposal.chosen)}, {"world": " ".join(changes), **row(other.chosen)}]


def _sample(job: Job, proposal: Proposal, sample: str, answers: Path, samples: Path | None) -> list[str]:
    from tierline.cli.images import images_of, records_of
    from tierline.cloud.tuner.explain import why_left
    from tierline.cloud.tuner.tryout import scores_of

    records = records_of(answers)
    for record in records:
        id_ = record["id"]
        if sample in (str(id_["seq"]), f"{id_['origin']}/{id_['epoch']}/{id_['seq']}"):
            scores = None
            if samples is not None:
                images, truths = images_of(samples)
                scores = scores_of(job.bundle, images[id_["seq"] % len(images)], truths[id_["seq"] % len(images)])
            return why_left(job, proposal.chosen.choice, record, scores)
    raise DataError(f"{answers}: none of {len(records)} answers is of sample {sample!r}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
