"""A metric over the rounds, one line per run, with where every line comes from inside the picture."""

from __future__ import annotations

from collections.abc import Sequence

from tierline.cli.chart import Axis, Series, chart
from tierline.cli.jobs import Run, provenance
from tierline.core.errors import DataError


def metric_picture(runs: Sequence[Run], metric: str) -> str:
    """The SVG's text. Raises DataError where no run has the metric."""
    lines = [(run, [(float(round), value) for round, name, value in run.rows if name == metric]) for run in runs]
    lines = [(run, points) for run, points in lines if points]
    if not lines:
        known = sorted({name for run in runs for _, name, _ in run.rows})
        raise DataError(f"no run has the metric {metric!r}; there are: {', '.join(known) or 'none'}")
    series = [Series(_label(run, points[-1][1]), points) for run, points in lines]
    about = "\n".join(provenance(run) for run, _ in lines)
    return chart(series, Axis("round"), Axis(metric), f"{metric} by round", about=about)


def _label(run: Run, last: float) -> str:
    head = run.head
    return f"{run.name}: {head['experiment']}, arm {head['arm']}, seed {head['seed']}: {last:.6g}"
