"""Lines and points over two axes: an SVG written by hand, readable on a light and on a dark page.

Both axes may be logarithmic. Series are told apart by hue and by the shape of their line; each point has a tooltip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

from tierline.cli.picture import STYLE
from tierline.core.errors import DataError

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 900, 520, 76, 24, 52, 62
_ROW = 20
_COLOURS = ("#2f6fd0", "#d2691e", "#2e9e5b", "#8e5bd0", "#c2418a", "#4aa3a3")


@dataclass(frozen=True)
class Series:
    """Points of one kind, in order."""

    name: str
    points: Sequence[tuple[float, float]]
    tips: Sequence[str] = ()
    line: bool = True
    steps: bool = False
    """Joined by steps instead of straight lines."""
    large: bool = False


@dataclass(frozen=True)
class Axis:
    """What stands along it."""

    label: str
    logarithmic: bool = False
    ticks: Sequence[tuple[float, str]] = field(default_factory=tuple)
    """Given ones; default: round numbers."""


def chart(series: Sequence[Series], x: Axis, y: Axis, title: str, *, about: str = "") -> str:
    """The SVG's text; `about` stands inside it, unseen. Raises DataError where there is nothing to draw."""
    points = [point for one in series for point in one.points]
    if not points:
        raise DataError(f"{title}: no points to draw")
    across = _Scale([p[0] for p in points], x, _LEFT, _WIDTH - _RIGHT)
    up = _Scale([p[1] for p in points], y, _HEIGHT - _BOTTOM, _TOP)
    body = _grid(across, up)
    legend: list[str] = []
    for index, one in enumerate(series):
        colour = _COLOURS[index % len(_COLOURS)]
        body += _drawn(one, colour, across, up)
        at = _HEIGHT + _ROW * index
        legend.append(f'<circle cx="{_LEFT + 5}" cy="{at - 4}" r="5" fill="{colour}"/>')
        legend.append(f'<text x="{_LEFT + 18}" y="{at}">{escape(one.name)}</text>')
    height = _HEIGHT + _ROW * len(series)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<desc>{escape(about)}</desc>",
            f"<style>{STYLE}</style>",
            f'<rect class="page" width="{_WIDTH}" height="{height}"/>',
            f'<text class="title" x="20" y="30">{escape(title)}</text>',
            *body,
            *legend,
            "</svg>",
            "",
        ]
    )


class _Scale:
    """Values to pixels."""

    def __init__(self, values: Sequence[float], axis: Axis, start: float, end: float) -> None:
        self.axis, self._start, self._end = axis, start, end
        if axis.logarithmic and min(values) <= 0:
            raise DataError(f"{axis.label}: values of 0 or below have no place on a logarithmic axis")
        low, high = min(values), max(values)
        if not axis.logarithmic:
            low, high = min(low, 0.0), high or 1.0
        self.low, self.high = self._of(low), self._of(high)
        if self.high <= self.low:
            self.high = self.low + 1.0

    def _of(self, value: float) -> float:
        return math.log10(value) if self.axis.logarithmic else value

    def __call__(self, value: float) -> float:
        return self._start + (self._of(value) - self.low) / (self.high - self.low) * (self._end - self._start)

    def ticks(self) -> Sequence[tuple[float, str]]:
        if self.axis.ticks:
            return self.axis.ticks
        if self.axis.logarithmic:
            powers = range(math.ceil(self.low - 1e-9), math.floor(self.high + 1e-9) + 1)
            return [(10.0**power, f"{10.0**power:g}") for power in powers]
        span = self.high - self.low
        power = 10.0 ** math.floor(math.log10(span / 4))
        step = max(power * factor for factor in (1, 2, 5) if power * factor <= span / 4)
        first = math.ceil(self.low / step)
        return [(i * step, f"{i * step:g}") for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _grid(across: _Scale, up: _Scale) -> list[str]:
    top, bottom, left, right = _TOP, _HEIGHT - _BOTTOM, _LEFT, _WIDTH - _RIGHT
    lines = []
    for value, label in across.ticks():
        x = across(value)
        lines.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>')
        lines.append(f'<text class="faint" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{escape(label)}</text>')
    for value, label in up.ticks():
        y = up(value)
        lines.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text class="faint" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>')
    middle = (left + right) / 2
    lines.append(f'<text x="{middle}" y="{bottom + 34}" text-anchor="middle">{escape(across.axis.label)}</text>')
    lines.append(f'<text x="{left}" y="{top - 6}">{escape(up.axis.label)}</text>')
    return lines


def _drawn(one: Series, colour: str, across: _Scale, up: _Scale) -> list[str]:
    places = [(across(x), up(y)) for x, y in one.points]
    parts = []
    if one.line and len(places) > 1:
        path = f"M{places[0][0]:.1f} {places[0][1]:.1f}"
        for x, y in places[1:]:
            path += f"H{x:.1f}V{y:.1f}" if one.steps else f"L{x:.1f} {y:.1f}"
        parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2" opacity="0.8"/>')
    radius = 8 if one.large else 3.5
    tips = [*one.tips, *[""] * (len(places) - len(one.tips))]
    for (x, y), tip in zip(places, tips, strict=True):
        hint = f"<title>{escape(tip)}</title>" if tip else ""
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{colour}">{hint}</circle>')
    return parts
