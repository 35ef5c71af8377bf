"""A metric over the rounds, one line per run: an SVG written by hand, with where every line comes from inside it."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from tierline.cli.jobs import Run, provenance
from tierline.cli.picture import STYLE, hex_colour, step_of, text
from tierline.core.errors import DataError

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 900, 420, 70, 20, 52, 46
_LINE = 18
_HUES = (212, 28, 145, 275, 345, 180, 55, 240)


def metric_picture(runs: Sequence[Run], metric: str) -> str:
    """The SVG's text. Raises DataError where no run has the metric."""
    lines = [(run, [(round, value) for round, name, value in run.rows if name == metric]) for run in runs]
    lines = [(run, points) for run, points in lines if points]
    if not lines:
        known = sorted({name for run in runs for _, name, _ in run.rows})
        raise DataError(f"no run has the metric {metric!r}; there are: {', '.join(known) or 'none'}")
    last = max(max(round for round, _ in points) for _, points in lines) or 1
    low = min(min(value for _, value in points) for _, points in lines)
    high = max(max(value for _, value in points) for _, points in lines)
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)

    def x(round: float) -> float:
        return _LEFT + round / last * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    body = [text(_LEFT, 30, f"{metric} by round", "title")]
    step = step_of(high - low)
    for tick in range(int(low // step), int(high // step) + 2):
        if low <= tick * step <= high:
            at = y(tick * step)
            body.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
            body.append(text(_LEFT - 8, at + 4, f"{tick * step:g}", "faint", "end"))
    for tick in range(int(last // (step := max(1.0, step_of(last)))) + 1):
        body.append(text(x(tick * step), _HEIGHT - _BOTTOM + 18, f"{tick * step:g}", "faint", "middle"))
    for place, (run, points) in enumerate(lines):
        colour = hex_colour(_HUES[place % len(_HUES)] / 360, 0.45 + 0.12 * (place // len(_HUES) % 3))
        path = " ".join(f"{x(round):.1f},{y(value):.1f}" for round, value in points)
        body.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>')
        at = _HEIGHT + place * _LINE
        body.append(f'<rect x="{_LEFT}" y="{at - 10}" width="12" height="12" fill="{colour}"/>')
        head = run.head
        label = f"{run.name}: {head['experiment']}, arm {head['arm']}, seed {head['seed']}: {points[-1][1]:.6g}"
        body.append(text(_LEFT + 18, at, label))
    height = _HEIGHT + len(lines) * _LINE + 8
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
            f"<title>{escape(metric)} by round</title>",
            f"<desc>{escape(chr(10).join(provenance(run) for run, _ in lines))}</desc>",
            f"<style>{STYLE}</style>",
            f'<rect class="page" width="{_WIDTH}" height="{height}"/>',
            *body,
            "</svg>",
            "",
        ]
    )
