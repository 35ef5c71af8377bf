from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tierline.core import catalog
from tierline.core.errors import ConfigError
from tierline.core.source.dataset import Dataset
from tierline.core.uri import open_sink, open_source, parse


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("dataset:./digits.npz", ("dataset", "./digits.npz", {})),
        ("dataset:a.npz?loop=true&rate=2.5", ("dataset", "a.npz", {"loop": "true", "rate": "2.5"})),
        ("rtsp://h/s", ("rtsp", "rtsp://h/s", {})),
        ("rtsp://u:p@h:554/s?width=320", ("rtsp", "rtsp://u:p@h:554/s", {"width": "320"})),
        ("rtsp://h/s?channel=1&subtype=0?", ("rtsp", "rtsp://h/s?channel=1&subtype=0", {})),
        ("rtsp://h/s?channel=1?width=320", ("rtsp", "rtsp://h/s?channel=1", {"width": "320"})),
        ("webhook:http://h:1/a", ("webhook", "http://h:1/a", {})),
        ("stdout", ("stdout", "", {})),
        ("api:", ("api", "", {})),
        ("python:./f.py:run", ("python", "./f.py:run", {})),
        ("gst:videotestsrc ! identity?width=8", ("gst", "videotestsrc ! identity", {"width": "8"})),
        ("folder:a?key=x%26y", ("folder", "a", {"key": "x&y"})),
        ("./mine.py:there", ("./mine.py", "there", {})),
    ],
)
def test_parse(uri: str, expected: tuple[str, str, dict[str, str]]) -> None:
    assert parse(uri) == expected


@pytest.mark.parametrize("uri", ["", "/data/x.npz", "://x", "folder:a?rate", "folder:a?=1", "folder:a?rate=1&rate=2"])
def test_parse_refuses(uri: str) -> None:
    with pytest.raises(ConfigError):
        parse(uri)


def test_every_room_member_has_the_schema_its_scheme_needs() -> None:
    assert set(catalog.names("source")) == {"api", "dataset", "folder", "gst", "rtsp", "video"}
    assert set(catalog.names("sink")) == {"jsonl", "python", "stdout", "webhook"}
    for room in ("source", "sink"):
        for name in catalog.names(room):
            catalog.load(room, name)


def test_unknown_scheme_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r'source "?.datset:x\.npz.*nearest is "dataset"'):
        open_source("datset:x.npz", "cam", 0)
    with pytest.raises(ConfigError, match='nearest is "webhook"'):
        open_sink("webhok:http://h/")


def test_unknown_option_names_the_nearest_and_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"no option 'widht'; nearest is .width.*one more '\?'"):
        open_source("rtsp://h/s?widht=3", "cam", 0)
    with pytest.raises(ConfigError, match="no option 'view_index'"):
        open_source("folder:a?view_index=3", "cam", 0)
    with pytest.raises(ConfigError, match="no option 'clock'"):
        open_source("folder:a?clock=3", "cam", 0)
    with pytest.raises(ConfigError, match="no option 'a'; it takes none"):
        open_sink("stdout?a=3")


def test_values_are_converted_by_annotation(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "class Mine:\n"
        "    def __init__(self, *, location: str, view: str, view_index: int,\n"
        "                 a: int = 0, b: float = 0, c: bool = False, d: str = '') -> None:\n"
        "        self.got = (location, view, view_index, a, b, c, d)\n"
    )
    mine = open_source(f"{plugin}:there?a=-3&b=1e-2&c=TRUE&d=x%20y", "cam", 2)
    assert mine.got == ("there", "cam", 2, -3, 0.01, True, "x y")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("rate=fast", "rate = 'fast' is not float"),
        ("start=1.5", "start = '1.5' is not int"),
        ("loop=yes", "loop = 'yes' is not true or false"),
        ("rate=-1", "rate = -1 must be"),
        ("start=-1", "must not be negative"),
    ],
)
def test_bad_values(query: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_source(f"dataset:x.npz?{query}", "cam", 0)


def test_queue_of_the_agent_file_stands_in(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="queue = 'newest'"):
        open_source("rtsp://h/s", "cam", 0, queue="newest")
    open_source("rtsp://h/s?queue=all", "cam", 0, queue="newest")
    with pytest.raises(ConfigError, match="no option 'queue'"):
        open_source("dataset:x.npz", "cam", 0, queue="all")


def test_open_source_gives_the_view(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=np.zeros((1, 2, 2), np.uint8))
    assert isinstance(open_source(f"dataset:{tmp_path / 'd.npz'}", "cam", 0), Dataset)
