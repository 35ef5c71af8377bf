"""Prints a trial's report: tables for people, JSON for programs, CSV for spreadsheets."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from tierline.cli.output import Format, emit, write
from tierline.cli.tables import tables


def show(report: Mapping[str, Any], form: Format, output: Path | None) -> None:
    """Print, or write to `output`."""
    if form is Format.JSON:
        write(json.dumps(report, indent=1) + "\n", output)
    elif form is Format.CSV:
        emit([{"key": key, "value": value} for key, value in _flat(report)], form, output)
    else:
        sink = io.StringIO()
        console = Console(file=sink, width=110) if output is not None else Console()
        for table in tables(report):
            console.print(table)
            console.print()
        for line in _summary(report):
            console.print(line, highlight=False, soft_wrap=True)
        if output is not None:
            write(sink.getvalue(), output)


def _summary(report: Mapping[str, Any]) -> Iterator[str]:
    predictions = report.get("predictions")
    if predictions:
        equal, total = predictions["equal_to_one_process"], predictions["samples"]
        yield f"{equal} of {total} answers equal those of the same Bundle in one process, sample for sample."
        if predictions.get("torch_disagreement"):
            shares = ", ".join(f"{name} {share:.4f}" for name, share in predictions["torch_disagreement"].items())
            yield f"Share of the validation split where torch names another class: {shares}."
    accuracy = report.get("accuracy", {})
    if "one_device_lost" in accuracy:
        yield f"Accuracy {accuracy['overall']:.3f}; with one device killed {accuracy['one_device_lost']:.3f}."
    thresholds = report.get("thresholds", {})
    if thresholds:
        yield "Thresholds: " + ", ".join(f"{name} {value:g}" for name, value in thresholds.items()) + "."


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, member in value.items():
            yield from _flat(member, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list | tuple):
        for index, member in enumerate(value):
            yield from _flat(member, f"{prefix}.{index}")
    else:
        yield prefix, value
