"""The mean ledger per exit as a picture: horizontal stacked bars in an SVG written by hand.

Readable on a light and on a dark page: the SVG brings its own colours for both (`prefers-color-scheme`). Each tier has
a hue, each span of it a shade; the residual is hatched. What is too small for a label stands in the legend only.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterable, Mapping
from xml.sax.saxutils import escape

from tierline.core.errors import DataError
from tierline.core.telemetry.ledger import SPAN_INDEX
from tierline.core.telemetry.report import RESIDUAL

Ledger = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Milliseconds by exit, tier and span, as `LatencyReport.mean_ledger`."""

_WIDTH, _MARGIN, _BAR, _GAP = 900, 20, 34, 18
_LEGEND_ROW, _CHAR = 20, 6.6  # one line of the legend; width of a 12 px letter, wide enough for common fonts
_HUES = (212, 28, 145, 275, 345, 180)

STYLE = """
text { font: 12px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328 }
.title { font-size: 15px; font-weight: 600 }
.faint { fill: #6e7781 }
.total { paint-order: stroke; stroke: #ffffff; stroke-width: 4px }
.onlight { fill: #14181d; font-size: 11px }
.ondark { fill: #ffffff; font-size: 11px }
.page { fill: #ffffff }
.grid { stroke: #d8dee4 }
.part { stroke: #ffffff; stroke-width: 1 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .faint { fill: #9198a1 }
  .total { stroke: #0d1117 }
  .onlight { fill: #14181d }
  .ondark { fill: #ffffff }
  .page { fill: #0d1117 }
  .grid { stroke: #30363d }
  .part { stroke: #0d1117 }
}
"""


def ledger_picture(mean_ledger: Ledger, title: str = "Where the time goes: mean milliseconds per answer") -> str:
    """The SVG's text. Raises DataError for an empty ledger."""
    if not mean_ledger:
        raise DataError("no mean ledger in this report: nothing to draw")
    colours = _colours(mean_ledger)
    left = _MARGIN + _CHAR * max(len(name) for name in mean_ledger) + 12
    totals = [_ms(_total(tiers)) for tiers in mean_ledger.values()]
    right = _WIDTH - _MARGIN - _CHAR * (max(map(len, totals)) + 3) - 8  # room for the total beside the longest bar
    longest_ms = max(sum(max(ms, 0.0) for _, ms in _flat(tiers)) for tiers in mean_ledger.values())
    scale = (right - left) / (longest_ms or 1.0)
    top = 52
    bottom = top + len(mean_ledger) * (_BAR + _GAP)
    body = _axis(left, top, bottom, scale, longest_ms)
    for row, (name, tiers) in enumerate(mean_ledger.items()):
        body += _bar(name, tiers, colours, left, top + _GAP / 2 + row * (_BAR + _GAP), scale)
    legend, height = _legend(colours, bottom + 46)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:g}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>",
            _HATCH,
            f'<rect class="page" width="{_WIDTH}" height="{height:g}"/>',
            text(_MARGIN, 30, title, "title"),
            *body,
            *legend,
            "</svg>",
            "",
        ]
    )


_HATCH = (
    '<defs><pattern id="residual" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="6" height="6" fill="#8c959f"/><rect width="2.5" height="6" fill="#57606a"/></pattern></defs>'
)


def _colours(mean_ledger: Ledger) -> dict[tuple[str, str], str]:
    """A fill for every tier and span that occurs, in drawing order."""
    tiers: dict[str, list[str]] = {}
    for exit_tiers in mean_ledger.values():
        for tier, spans in exit_tiers.items():
            known = tiers.setdefault(tier, [])
            known += [name for name in spans if name not in known]
    fills = {}
    for hue, (tier, names) in enumerate(tiers.items()):
        measured = [name for name in _in_order(names) if name != RESIDUAL]
        for shade, name in enumerate(measured):
            light = 0.27 + 0.45 * shade / max(len(measured) - 1, 1)
            fills[tier, name] = hex_colour(_HUES[hue % len(_HUES)] / 360, light)
        if RESIDUAL in names:
            fills[tier, RESIDUAL] = "url(#residual)"
    return fills


def _bar(
    name: str,
    tiers: Mapping[str, Mapping[str, float]],
    colours: Mapping[tuple[str, str], str],
    x: float,
    y: float,
    scale: float,
) -> list[str]:
    middle = y + _BAR / 2 + 4
    parts = [text(x - 12, middle, name, anchor="end")]
    for tier, spans in tiers.items():
        for span in _in_order(spans):
            ms = spans[span]
            width = max(ms, 0.0) * scale  # spans that overlap make a residual negative; the total tells
            if width < 0.05:
                continue
            edge = ' class="part"' if width > 4 else ""  # a frame would swallow a thin part
            tip = escape(f"{tier} {span}: {_ms(ms)} ms")
            parts.append(
                f'<rect{edge} x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{_BAR}" '
                f'fill="{colours[tier, span]}"><title>{tip}</title></rect>'
            )
            label = f"{span} {_ms(ms)}"
            if span != RESIDUAL and width > _CHAR * len(label) + 8:
                parts.append(text(x + width / 2, middle, label, _ink(colours[tier, span]), "middle"))
            x += width
    parts.append(text(x + 8, middle, f"{_ms(_total(tiers))} ms", "total"))
    return parts


def _axis(left: float, top: float, bottom: float, scale: float, longest_ms: float) -> list[str]:
    step = step_of(longest_ms)
    lines = []
    for tick in range(int(longest_ms / step) + 1):
        x = left + tick * step * scale
        lines.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>')
        lines.append(text(x, bottom + 16, f"{tick * step:g}", "faint", "middle"))
    return lines


def _legend(colours: Mapping[tuple[str, str], str], y: float) -> tuple[list[str], float]:
    """One line per tier, wrapped where needed; also the height of the picture."""
    parts: list[str] = []
    indent = _MARGIN + _CHAR * max(len(tier) for tier, _ in colours) + 16
    for tier in dict.fromkeys(tier for tier, _ in colours):
        parts.append(text(_MARGIN, y, tier))
        x = indent
        for name in (name for owner, name in colours if owner == tier):
            width = 18 + _CHAR * len(name) + 16
            if x + width > _WIDTH - _MARGIN:
                x, y = indent, y + _LEGEND_ROW
            parts.append(f'<rect x="{x:.1f}" y="{y - 10:.1f}" width="12" height="12" fill="{colours[tier, name]}"/>')
            parts.append(text(x + 18, y, name))
            x += width
        y += _LEGEND_ROW
    return parts, y - _LEGEND_ROW + _MARGIN


def hex_colour(hue: float, light: float) -> str:
    """The colour as #rrggbb, which every viewer reads."""
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, light, 0.62))


def _ink(fill: str) -> str:
    """The class of a label on this fill: dark on light colours, by relative luminance (WCAG 2.1)."""
    red, green, blue = (int(fill[i : i + 2], 16) / 255 for i in (1, 3, 5))
    luminance = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
    return "onlight" if luminance > 0.18 else "ondark"


def _in_order(names: Iterable[str]) -> list[str]:
    """Span names in the ledger's order, the residual last."""
    last = len(SPAN_INDEX)
    return sorted(names, key=lambda name: SPAN_INDEX.get(name, last + (name == RESIDUAL)))


def _total(tiers: Mapping[str, Mapping[str, float]]) -> float:
    return sum(ms for _, ms in _flat(tiers))


def _flat(tiers: Mapping[str, Mapping[str, float]]) -> list[tuple[str, float]]:
    return [item for spans in tiers.values() for item in spans.items()]


def step_of(longest: float) -> float:
    """A round distance of axis ticks: 1, 2 or 5 times a power of ten, with 4 to 10 ticks."""
    if longest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(longest / 4))
    return max(power * factor for factor in (1, 2, 5) if power * factor <= longest / 4)


def _ms(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text{style} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
