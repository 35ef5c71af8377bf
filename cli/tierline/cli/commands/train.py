"""`tierline train`: from a data set to a calibrated Bundle."""

from __future__ import annotations

import enum
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from tierline.cli.output import Format, FormatOption, OutputOption, SetOption, emit
from tierline.core.errors import UsageError


class On(str, enum.Enum):
    """Where an experiment runs."""

    SIMULATE = "simulate"
    PROCESSES = "processes"
    FLEET = "fleet"


DEFAULT = "127.0.0.1:7443"

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def train(
    file: Annotated[Path | None, typer.Argument(help="Experiment file; without one a DDNN is trained.")] = None,
    address: Annotated[str, typer.Argument(help="With --on fleet: host:port of the hierarchy's root.")] = DEFAULT,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the new Bundle, or of the metrics.")] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="digits, mnist, fashion_mnist, cifar10, mvmc, or a path.")
    ] = None,
    devices: Annotated[int | None, typer.Option("--devices", min=1, help="Devices, one view each.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    overrides: SetOption = None,
    thresholds: Annotated[
        str, typer.Option("--thresholds", help="best_accuracy, target_accuracy=X or target_exit_share=X.")
    ] = "target_exit_share=0.4",
    samples: Annotated[int, typer.Option("--samples", min=0, help="Test samples to write beside the model.")] = 0,
    on: Annotated[On, typer.Option("--on", help="Where an experiment runs.")] = On.SIMULATE,
    arm: Annotated[list[str] | None, typer.Option("--arm", help="Run this arm of the file only; repeatable.")] = None,
    replay: Annotated[
        Path | None, typer.Option("--replay", help="Simulate what --on processes left in this --out, and compare.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the runs of an experiment in --out.")] = False,
    state_dir: Annotated[
        Path | None, typer.Option("--state-dir", help="With --on fleet: the root's own, whose pki/ proves who asks.")
    ] = None,
    form: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> None:
    """Train a DDNN and write a Bundle, or run an experiment FILE: federated and gossip training, compared.

    `--set model.device_filters=16`, `--set training.epochs=8` change the recipe; with FILE, `--set` changes its keys.
    """
    from tierline.cli.folders import check_file, check_new_folder
    from tierline.cli.signals import exit_on_signals
    from tierline.cli.trial.training import parse_overrides, require_torch

    if out is None or (file is None) == (data is None):
        raise UsageError("train: needs --out, and either --data or an experiment FILE; see `tierline train --help`")
    if replay is not None and (file is None or on is not On.SIMULATE):
        raise UsageError("train: --replay simulates the runs of an experiment FILE; leave --on out")
    check_new_folder("--out", out)
    check_file("--output", output)
    require_torch("train")
    exit_on_signals()
    if file is not None:
        from tierline.cli.experiment.command import run_experiment
        from tierline.cli.experiment.fleet import OnFleet

        run_experiment(
            file,
            out,
            overrides=overrides or [],
            arms=arm or [],
            resume=resume,
            form=form,
            output=output,
            on=on.value,
            fleet=OnFleet(address, state_dir, out) if on is On.FLEET else None,
            replay=replay,
        )
        return
    assert data is not None
    rows = _train_ddnn(out, data, devices, seed, parse_overrides(overrides or []), thresholds, samples)
    emit(rows, form, output)


def _train_ddnn(
    out: Path,
    data: str,
    devices: int | None,
    seed: int,
    recipe: dict[str, dict[str, Any]],
    thresholds: str,
    num_samples: int,
) -> list[dict[str, Any]]:
    """Train it into a new Bundle; a row for each exit."""
    from tierline.cli.folders import whole_folder
    from tierline.cli.trial.training import announce
    from tierline.core.bundle import MANIFEST
    from tierline.models.make import train_bundle, write_samples

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    started = time.monotonic()
    with whole_folder(out, last=MANIFEST) as folder:
        bundle, dataset = train_bundle(
            data,
            folder,
            devices=devices,
            seed=seed,
            model=recipe["model"],
            training=recipe["training"],
            thresholds=thresholds,
            progress=announce(say),
            command="tierline train",
        )
        if num_samples:
            write_samples(folder / "samples.npz", dataset, num_samples)
    say(f"trained in {time.monotonic() - started:.0f} s; Bundle {bundle.digest[:12]} in {out}")
    calibration = bundle.manifest.calibration
    assert calibration is not None
    return [
        {"exit": name, "validation_accuracy": round(value, 4), "threshold": calibration.thresholds.get(name)}
        for name, value in calibration.accuracy.items()
    ]
