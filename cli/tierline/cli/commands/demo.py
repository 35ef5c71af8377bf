"""`tierline demo`: a living hierarchy on this machine, in seconds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tierline.cli.output import Format, FormatOption, OutputOption, write

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def demo(
    retrain: Annotated[bool, typer.Option("--retrain", help="Train the model first (needs torch).")] = False,
    data: Annotated[str, typer.Option("--data", help="digits, mnist, cifar10, mvmc, or a path.")] = "digits",
    devices: Annotated[int, typer.Option("--devices", min=1, help="Devices, one view each.")] = 6,
    link: Annotated[str, typer.Option("--link", help="Emulate lte, wifi, 3g, lan or rtt_ms=50,mbit=5.")] = "",
    codec: Annotated[
        str, typer.Option("--codec", help="Code features with this, e.g. affine:4; see `algo ls codec`.")
    ] = "",
    tls: Annotated[bool, typer.Option("--tls", help="Mutual TLS between all processes.")] = False,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    samples: Annotated[int, typer.Option("--samples", min=10, help="Held-out samples at the most.")] = 2000,
    picture: Annotated[Path | None, typer.Option("--picture", help="Draw the ledger as SVG into this file.")] = None,
    run_dir: Annotated[Path | None, typer.Option("--run-dir", help="Keep files, logs and answers here.")] = None,
    form: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> None:
    """Run devices, an edge node and a cloud as processes over real samples; lose a device; report."""
    from tierline.cli.folders import check_file, run_folder
    from tierline.cli.relay.profile import parse_link
    from tierline.cli.signals import exit_on_signals
    from tierline.cli.trial.demo import DemoOptions, run_demo
    from tierline.cli.trial.show import show

    if link:
        parse_link(link)
    check_file("--picture", picture)
    check_file("--output", output)
    options = DemoOptions(data, devices, retrain, link, tls, seed, samples, codec)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    exit_on_signals()
    with run_folder(run_dir, "tierline-demo-", say) as folder:
        report = run_demo(options, folder, say)
    if picture is not None:
        from tierline.cli.picture import ledger_picture

        write(ledger_picture(report["latency_ms"]["mean_ledger"]), picture, "--picture")
    show(report, form, output)
