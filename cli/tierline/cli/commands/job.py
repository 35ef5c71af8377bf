"""`tierline job`: runs of experiments, at the root of a fleet or in a folder of `tierline train --out`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tierline.cli.identity import IdentityOption
from tierline.cli.output import Format, FormatOption, OutputOption, emit, write
from tierline.core.errors import ConfigError, UsageError

app = typer.Typer(help="Show, stop, compare and export runs of learning.", rich_markup_mode=None, add_completion=False)

DEFAULT = "127.0.0.1:7443"

Where = Annotated[str, typer.Argument(help="host:port of a fleet's root, or the --out of `tierline train`.")]
Job = Annotated[str, typer.Argument(help="As `tierline job ls` names it.")]
Chosen = Annotated[list[str] | None, typer.Option("--job", help="This one; repeatable. Default: all.")]


@app.command()
def ls(
    where: Where = DEFAULT,
    state_dir: IdentityOption = None,
    form: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> None:
    """List runs, oldest first."""
    from tierline.cli.jobs import place_of

    rows: list[dict[str, Any]] = [
        {
            "job": run.name,
            "experiment": run.head["experiment"],
            "arm": run.head["arm"],
            "seed": run.head["seed"],
            "status": run.status,
            "round": f"{run.round}/{run.rounds}",
            "error": run.error,
        }
        for run in place_of(where, state_dir).runs()
    ]
    emit(rows, form, output)


@app.command()
def log(
    job: Job,
    where: Where = DEFAULT,
    state_dir: IdentityOption = None,
    form: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> None:
    """Show what was measured: one row per round."""
    from tierline.cli.jobs import find, place_of

    rounds: dict[int, dict[str, Any]] = {}
    run = find(place_of(where, state_dir).runs(), job)
    metrics = dict.fromkeys(metric for _, metric, _ in run.rows)
    for round, metric, value in run.rows:
        rounds.setdefault(round, {"round": round, **dict.fromkeys(metrics)})[metric] = value
    emit(list(rounds.values()), form, output)


@app.command()
def stop(job: Job, where: Where = DEFAULT, state_dir: IdentityOption = None) -> None:
    """Stop a run; it keeps its place."""
    from tierline.cli.jobs import place_of

    place_of(where, state_dir).change(job, "stop")


@app.command()
def resume(job: Job, where: Where = DEFAULT, state_dir: IdentityOption = None) -> None:
    """Let a stopped or failed run go on from where it was."""
    from tierline.cli.jobs import place_of

    place_of(where, state_dir).change(job, "resume")


@app.command()
def compare(
    where: Where = DEFAULT,
    jobs: Chosen = None,
    state_dir: IdentityOption = None,
    form: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> None:
    """Show runs side by side: each metric's newest value."""
    from tierline.cli.jobs import find, place_of

    runs = place_of(where, state_dir).runs()
    runs = [find(runs, name) for name in jobs] if jobs else runs
    metrics = dict.fromkeys(metric for run in runs for _, metric, _ in run.rows)
    rows: list[dict[str, Any]] = [
        {
            "job": run.name,
            "arm": run.head["arm"],
            "seed": run.head["seed"],
            "status": run.status,
            "round": run.round,
            **{metric: _short(run.last().get(metric), form) for metric in metrics},
        }
        for run in runs
    ]
    emit(rows, form, output)


@app.command()
def export(
    where: Where = DEFAULT,
    jobs: Chosen = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Every measurement, one per row.")] = None,
    model: Annotated[Path | None, typer.Option("--model", help="The model of one --job, as .npz.")] = None,
    round: Annotated[int, typer.Option("--round", min=0, help="Of --model; 0: the newest that is kept.")] = 0,
    picture: Annotated[Path | None, typer.Option("--picture", help="A metric by round, as SVG.")] = None,
    metric: Annotated[str, typer.Option("--metric", help="Of --picture.")] = "test_accuracy",
    state_dir: IdentityOption = None,
) -> None:
    """Write measurements, a model, or a picture with where its lines come from."""
    from tierline.cli.folders import check_file
    from tierline.cli.jobs import find, place_of
    from tierline.cli.metric_picture import metric_picture

    if csv is None and model is None and picture is None:
        raise UsageError("job export: nothing to write; give --csv, --model or --picture with a file")
    for flag, file in (("--csv", csv), ("--model", model), ("--picture", picture)):
        check_file(flag, file)
    place = place_of(where, state_dir)
    runs = place.runs()
    runs = [find(runs, name) for name in jobs] if jobs else runs
    if csv is not None:
        rows: list[dict[str, Any]] = [
            {
                "job": run.name,
                "experiment": run.head["experiment"],
                "arm": run.head["arm"],
                "seed": run.head["seed"],
                "round": at,
                "metric": name,
                "value": value,
            }
            for run in runs
            for at, name, value in run.rows
        ]
        emit(rows, Format.CSV, csv)
    if picture is not None:
        write(metric_picture(runs, metric), picture, "--picture")
    if model is not None:
        if len(runs) != 1:
            raise UsageError(f"job export --model: {len(runs)} runs are meant; name one with --job")
        raw = place.model(runs[0], round)
        try:
            model.write_bytes(raw)
        except OSError as error:
            raise ConfigError(f"--model {model}: cannot be written: {error.strerror}") from None


def _short(value: float | None, form: Format) -> float | str | None:
    return f"{value:.6g}" if value is not None and form is Format.TABLE else value
