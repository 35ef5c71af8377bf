"""Writing TOML: the little that configuration files need, and that the standard library leaves out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def dumps(document: msgspec.Struct | Mapping[str, Any]) -> str:
    """A document: plain keys first, then one table per nested table, one array table per list of tables.

    Keys whose value is None are left out, since TOML has no word for it.
    """
    root: Mapping[str, Any] = msgspec.to_builtins(document)
    lines: list[str] = []
    tables: list[tuple[str, Mapping[str, Any]]] = []
    for key, value in root.items():
        if isinstance(value, Mapping):
            tables.append((f"[{_key(key)}]", value))
        elif isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
            tables += [(f"[[{_key(key)}]]", item) for item in value]
        else:
            lines += _line(key, value)
    for header, table in tables:
        lines += ["", header]
        for key, value in table.items():
            lines += _line(key, value)
    return "\n".join(lines) + "\n"


def value_text(value: Any) -> str:
    """One value as TOML."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        pairs = (f"{_key(key)} = {value_text(item)}" for key, item in value.items() if item is not None)
        return f"{{{', '.join(pairs)}}}"
    return f"[{', '.join(map(value_text, value))}]"


def _line(key: str, value: Any) -> list[str]:
    return [] if value is None else [f"{_key(key)} = {value_text(value)}"]


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else value_text(key)
