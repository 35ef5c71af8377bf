"""The ledger's picture: lengths are durations, texts do not overlap, it is valid XML."""

import re
from xml.etree import ElementTree

import pytest

from tierline.cli.picture import ledger_picture
from tierline.core.errors import DataError
from tierline.core.telemetry.ledger import SPANS

LEDGER = {
    "local": {"device": {"section": 0.5, "send": 5.0, "residual": 0.1}, "edge": {"queue": 1.2, "residual": 0.2}},
    "cloud": {
        "device": {"section": 0.5, "send": 6.0, "residual": 0.1},
        "edge": {"send": 52.0, "residual": 0.2},
        "cloud": {"section": 2.0, "residual": -0.4},
    },
}


def boxes(svg: str) -> list[tuple[float, float, float, float, str]]:
    """(left, right, top, bottom, words) of every text, with letters as wide as in common sans-serif fonts."""
    found = []
    for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        x, y, words = float(text.attrib["x"]), float(text.attrib["y"]), text.text or ""
        size = 15 if text.attrib.get("class") == "title" else 12
        width = 0.55 * size * len(words)
        left = x - {"start": 0.0, "middle": width / 2, "end": width}[text.attrib["text-anchor"]]
        found.append((left, left + width, y - 0.8 * size, y + 0.2 * size, words))
    return found


def parts(svg: str) -> dict[str, list[float]]:
    """Widths of bar parts by their tool tip, shown as `tier span`."""
    widths: dict[str, list[float]] = {}
    for rect in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}rect"):
        tip = rect.find("{http://www.w3.org/2000/svg}title")
        if tip is not None and tip.text:
            widths.setdefault(tip.text.split(":")[0], []).append(float(rect.attrib["width"]))
    return widths


def test_lengths_are_proportional_to_durations() -> None:
    widths = parts(ledger_picture(LEDGER))
    per_ms = widths["edge send"][0] / 52.0
    assert widths["device send"] == pytest.approx([5.0 * per_ms, 6.0 * per_ms], abs=0.1)
    assert widths["cloud section"] == pytest.approx([2.0 * per_ms], abs=0.1)
    assert "cloud residual" not in widths, "a negative residual has no length"


def test_totals_labels_and_legend_are_written() -> None:
    words = [box[4] for box in boxes(ledger_picture(LEDGER))]
    assert {"local", "7.00 ms", "cloud", "60.4 ms", "send 52.0", "residual", "device", "edge"} <= set(words)


@pytest.mark.parametrize(
    "ledger",
    [
        LEDGER,
        {"a-rather-long-exit-name": {"a-rather-long-tier": dict.fromkeys([*SPANS, "residual"], 1.0)}},
        {f"exit{i}": {f"tier{i}": {"section": 10.0**i}} for i in range(8)},
        {"only": {"device": {"section": 0.0}}},
    ],
)
def test_texts_overlap_nowhere_and_stay_inside(ledger: dict[str, dict[str, dict[str, float]]]) -> None:
    svg = ledger_picture(ledger)
    view = re.search(r'viewBox="0 0 (\S+) (\S+)"', svg)
    assert view
    width, height = map(float, view.groups())
    found = boxes(svg)
    for i, (left, right, top, bottom, words) in enumerate(found):
        assert left >= 0 and right <= width and top >= 0 and bottom <= height, words
        for other in found[i + 1 :]:
            apart = right <= other[0] or other[1] <= left or bottom <= other[2] or other[3] <= top
            assert apart, f"{words!r} overlaps {other[4]!r}"


def test_it_has_colours_for_light_and_dark_pages_and_escapes_names() -> None:
    svg = ledger_picture({"<&>": {"device": {"section": 1.0}}})
    assert "prefers-color-scheme: dark" in svg
    assert "<&>" in [box[4] for box in boxes(svg)]


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(DataError, match="nothing to draw"):
        ledger_picture({})
