"""Reports as tables for the terminal. They read the JSON dict of a report, so a saved file prints the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from tierline.core.telemetry.ledger import SPAN_INDEX

Report = Mapping[str, Any]
_OF_ALL = ("overall", "one_device_lost")
"""Accuracies of no level of its own."""


def tables(report: Report) -> list[Table]:
    """One table per part that the report has: latency per exit, the ledger, bytes per sample, accuracy."""
    made = []
    if "latency_ms" in report:
        made += [latency_table(report), ledger_table(report)]
    if "bytes_per_sample" in report:
        made.append(bytes_table(report["bytes_per_sample"]))
    if "accuracy" in report:
        made.append(accuracy_table(report))
    if "quality" in report:
        made.append(quality_table(report["quality"]))
    return made


def latency_table(report: Report) -> Table:
    """End-to-end milliseconds and the share of answers, per exit and in total."""
    table = _table("End-to-end latency, one answer per view", "exit", "answers", "share", "p50 ms", "p90 ms", "p99 ms")
    latency = report["latency_ms"]
    shares = report.get("exit_share", {})
    for name in dict.fromkeys([*shares, *latency["by_exit"]]):
        values = latency["by_exit"].get(name, {})
        table.add_row(name, *_latency_cells(values, shares.get(name)))
    table.add_section()
    table.add_row("all", *_latency_cells(latency["total"], None))
    return table


def ledger_table(report: Report) -> Table:
    """Median and 99th percentile of every span on every tier; the residual is what no span explains."""
    latency = report["latency_ms"]
    tiers: Mapping[str, Mapping[str, Mapping[str, float]]] = latency["spans"]
    table = _table("Ledger: p50 / p99 ms per visit", "span", *tiers)
    names = {name for spans in tiers.values() for name in spans if name != "residual"}
    for name in sorted(names, key=lambda name: (SPAN_INDEX.get(name, len(SPAN_INDEX)), name)):
        table.add_row(name, *(_pair(spans.get(name)) for spans in tiers.values()))
    table.add_section()
    table.add_row("residual", *(_pair(spans.get("residual")) for spans in tiers.values()))
    shares = latency.get("residual_share_p50", {})
    table.add_row("residual share", *(_percent(shares.get(tier)) for tier in tiers))
    return table


def bytes_table(bytes_per_sample: Mapping[str, Any]) -> Table:
    """Bytes per sample of each link upwards: coded tensors, what frames them, and what to compare with."""
    sizes = bytes_per_sample
    table = _table("Bytes per sample, upwards", "link", "payload", "framing", "raw input", "of raw", "formula")
    for name in ("device_edge", "edge_cloud"):
        if name in sizes:
            first = name == "device_edge"
            table.add_row(
                name.replace("_", " to "),
                _number(sizes[name]),
                _number(sizes["framing"][name]),
                _number(sizes["raw"]) if first else "",
                _percent(sizes[name] / sizes["raw"]) if first else "",
                _number(sizes["formula"]) if first else "",
            )
    return table


def accuracy_table(report: Report) -> Table:
    """Accuracy of every exit, from the sensor up: over all samples, and over those that left there."""
    accuracy, answered = report["accuracy"], report.get("accuracy_by_exit", {})
    rows: dict[str, Any] = {}
    for name, value in accuracy.items():
        if isinstance(value, list | tuple):
            rows |= {f"{name} {i}": member for i, member in enumerate(value)}
        else:
            rows[name] = value
    table = _table("Accuracy", "exit", "all samples", *(("answered there",) if answered else ()))
    levels = [name for name in rows if name not in _OF_ALL]
    for name in dict.fromkeys([*levels, *answered, *rows]):
        cells = [_percent(rows.get(name))] + ([_percent(answered.get(name))] if answered else [])
        table.add_row(name.replace("_", " "), *cells)
    return table


def quality_table(quality: Mapping[str, Any]) -> Table:
    """What another task than classification measures, of the answers of each exit."""
    table = _table("Quality", "exit", quality["measure"])
    for name, value in quality.items():
        if name != "measure":
            table.add_row(name, f"{value:.3f}")
    return table


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="")
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _latency_cells(values: Mapping[str, float], share: float | None) -> list[str]:
    return [
        f"{values['count']:,}" if "count" in values else "",
        _percent(share),
        *(_ms(values.get(key)) for key in ("p50", "p90", "p99")),
    ]


def _pair(values: Mapping[str, float] | None) -> str:
    return f"{_ms(values['p50'])} / {_ms(values['p99'])}" if values else ""


def _ms(value: float | None) -> str:
    if value is None:
        return ""
    return f"{_rounded(value, 3):.3f}" if abs(value) < 10 else f"{value:.1f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{_rounded(100 * share, 1):.1f} %"


def _rounded(value: float, digits: int) -> float:
    """Rounded, and 0 rather than -0."""
    return round(value, digits) + 0.0


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"
