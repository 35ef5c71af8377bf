"""`tierline bench latency`: end-to-end latency of a Bundle on a hierarchy of processes; `bench codec`: codecs alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tierline.cli.output import Format, FormatOption, OutputOption

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.callback()
def bench() -> None:
    """Measure on this machine."""


@app.command()
def latency(
    bundle: Annotated[Path | None, typer.Option("--bundle", help="Bundle folder; else the one in tierline.")] = None,
    samples: Annotated[
        Path | None, typer.Option("--samples", help="npz, folder of images or video; else the Bundle's npz.")
    ] = None,
    rate: Annotated[float, typer.Option("--rate", min=0, help="Samples per second, open loop; 0: closed loop.")] = 0.0,
    in_flight: Annotated[int, typer.Option("--in-flight", min=1, help="Samples that may wait for answers.")] = 1,
    seconds: Annotated[float, typer.Option("--seconds", min=1)] = 10.0,
    warmup: Annotated[float, typer.Option("--warmup", min=0, help="Seconds not counted.")] = 2.0,
    link: Annotated[str, typer.Option("--link", help="Emulate lte, wifi, 3g, lan or rtt_ms=50,mbit=5.")] = "",
    mode: Annotated[str, typer.Option("--mode", help="on_demand or eager.")] = "on_demand",
    tls: Annotated[bool, typer.Option("--tls", help="Mutual TLS between all processes.")] = False,
    form: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> None:
    """Open loop at a rate, or closed loop: devices, an edge node and a cloud as processes, end to end."""
    from tierline.cli.folders import check_file, run_folder
    from tierline.cli.signals import exit_on_signals
    from tierline.cli.trial.latency import LatencyOptions, measure_latency
    from tierline.cli.trial.show import show

    check_file("--output", output)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    options = LatencyOptions(bundle, samples, rate, in_flight, seconds, warmup, link, mode, tls)
    exit_on_signals()
    with run_folder(None, "tierline-bench-", say) as folder:
        report = measure_latency(options, folder, say)
    show(report, form, output)


@app.command()
def codec(
    tokens: Annotated[
        list[str] | None, typer.Option("--codec", metavar="TOKEN", help="e.g. affine:4+zstd; repeatable.")
    ] = None,
    shape: Annotated[str, typer.Option("--shape", help="Of the batch, sides with x between.")] = "32x64x28x28",
    dtype: Annotated[str, typer.Option("--dtype", help="Of the values.")] = "float32",
    data: Annotated[Path | None, typer.Option("--data", help="A .npy file [B, ...]; else made-up values.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    device: Annotated[str, typer.Option("--device", help="cpu, or cuda: the first NVIDIA GPU.")] = "cpu",
    form: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> None:
    """Size, error and speed of codecs on one thread or a GPU, beside a copy of the same bytes.

    With --device cuda the values are on the GPU and the bytes in host memory; a codec that no GPU runs has a row that
    says so.
    """
    from tierline.cli.output import emit
    from tierline.cli.trial.codec import CodecOptions, measure_codecs, settled_kernels
    from tierline.core.telemetry.environment import environment

    kernels = settled_kernels() if device == "cpu" else "the GPU's kernels"
    rows = measure_codecs(CodecOptions(shape, dtype, tokens or (), data, seed, device))
    rows[0]["note"] = f"codecs: {kernels}"
    emit(rows, form, output, {"environment": environment(), "codecs": rows})
