"""What we write, a TOML parser reads back."""

from __future__ import annotations

import sys

import pytest

from tierline.cli.toml import dumps

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.mark.parametrize(
    "document",
    [
        {"a": 1, "b": 2.5, "c": True, "d": "x", "e": [1, 2], "f": [], "big": 1e300, "inf": float("inf")},
        {"text": 'quote " backslash \\ newline \n tab \t del \x7f null \x00 umlaut ü emoji 🙂'},
        {"table": {"k": "v", "inner": {"x.y": [{"a": 1}, {"b": {"c": 2}}]}, "empty": {}}, "first": 1},
        {"node": [{"id": "a", "views": ["v"]}, {"id": "b", "views": []}], "needs quotes": {"": 1}},
    ],
)
def test_what_is_written_is_read_back(document: dict[str, object]) -> None:
    assert tomllib.loads(dumps(document)) == document


def test_none_is_left_out() -> None:
    assert tomllib.loads(dumps({"a": None, "t": {"b": None, "c": 1, "d": {"e": None}}})) == {"t": {"c": 1, "d": {}}}
