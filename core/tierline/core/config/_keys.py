"""Walking a configuration's types: which keys there are, writing one by its dotted name, explaining a misfit."""

from __future__ import annotations

import enum
import re
import sys
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec

from tierline.core.catalog import nearest
from tierline.core.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MISFIT = re.compile(r"(?P<what>.*?)(?: - at `(?P<at>[^`]*)`)?", re.DOTALL)
_EXPECTED = re.compile(r"Expected `(?P<kind>.+?)`(?P<bound>.*?)(?:, got `(?P<found>.+)`)?")
_KINDS = {
    "str": "text",
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "object": "a table",
    "array": "a list",
}


def fields(type_: type[msgspec.Struct]) -> dict[str, Any]:
    return {field.name: field.type for field in msgspec.structs.fields(type_)}


def _options(type_: Any) -> tuple[Any, ...]:
    """The members of a union, without their annotations; of anything else itself."""
    if typing.get_origin(type_) is Annotated:
        return _options(typing.get_args(type_)[0])
    if typing.get_origin(type_) in (typing.Union, types.UnionType):
        return tuple(option for member in typing.get_args(type_) for option in _options(member))
    return (type_,)


def struct(type_: Any) -> type[msgspec.Struct] | None:
    return next((o for o in _options(type_) if isinstance(o, type) and issubclass(o, msgspec.Struct)), None)


def _item(type_: Any) -> Any:
    """The type of a list's items or a table's free values; None for what has none."""
    for option in _options(type_):
        if typing.get_origin(option) in (list, tuple):
            return typing.get_args(option)[0]
        if typing.get_origin(option) is dict:
            return typing.get_args(option)[1]
    return None


def check_keys(raw: Any, type_: Any, name: str, at: str = "") -> None:
    table, item = struct(type_), _item(type_)
    if isinstance(raw, dict) and table:
        valid = fields(table)
        for key, value in raw.items():
            here = f"{at}.{key}" if at else key
            if key not in valid:
                raise ConfigError(f"{name}: {here}: no such key{nearest(key, list(valid))}")
            check_keys(value, valid[key], name, here)
    elif isinstance(raw, list) and item:
        for index, value in enumerate(raw):
            check_keys(value, item, name, f"{at}[{index}]")


def leaves(type_: type[msgspec.Struct], at: str = "") -> Iterator[str]:
    for key, field in fields(type_).items():
        table = struct(field)
        if table:
            yield from leaves(table, f"{at}{key}.")
        else:
            yield at + key


def put(raw: dict[str, Any], type_: type[msgspec.Struct], key: str, text: str, label: str) -> None:
    """Write one override into the raw document, creating tables on its way."""
    at: Any = raw
    kind: Any = type_
    parts = re.sub(r"\[(\d+)\]", r".\1", key).split(".")
    for depth, part in enumerate(parts):
        table, item = struct(kind), _item(kind)
        if isinstance(at, list) and part.isdigit() and int(part) < len(at):
            step: Any = int(part)
            kind = item
        elif isinstance(at, dict) and table:
            valid = fields(table)
            if part not in valid:
                raise ConfigError(f"{label} {key}: no such key{nearest(part, list(valid))}")
            step, kind = part, valid[part]
        elif isinstance(at, dict) and item:
            step, kind = part, item
        else:
            raise ConfigError(f"{label} {key}: there is no {part!r} in {'.'.join(parts[:depth])}")
        if depth == len(parts) - 1:
            at[step] = _parse(text, kind)
        elif isinstance(at, dict) and step not in at:
            at[step] = [] if _item(kind) and typing.get_origin(_options(kind)[0]) is not dict else {}
        at = at[step]


def _parse(text: str, type_: Any) -> Any:
    """Text for a key of type text (or one of several words), a TOML value for any other."""
    if all(option is str or _words(option) for option in _options(type_)):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def explain(
    error: msgspec.ValidationError, raw: dict[str, Any], type_: type[msgspec.Struct], name: str, given: dict[str, str]
) -> str:
    match = _MISFIT.fullmatch(str(error))
    assert match, error
    what, key = match["what"], (match["at"] or "$").removeprefix("$").removeprefix(".")
    missing = re.fullmatch(r"Object missing required field `(.+)`", what)
    if missing:
        return f"{name}: {f'{key}.' if key else ''}{missing[1]}: missing, and there is no default; add it"
    value, kind, key = _find(raw, type_, key)
    where = next((given[put] for put in reversed(given) if _covers(put, key)), name).removeprefix("environment ")
    expected = _EXPECTED.fullmatch(what)
    if expected:
        wanted = " or ".join(_KINDS.get(k, k) for k in expected["kind"].split(" | "))
        return f"{where}: {key} = {show(value)}: expected {wanted}{expected['bound']}"
    if what.startswith("Invalid enum value"):
        words = [word for option in _options(kind) for word in _words(option)]
        return f"{where}: {key} = {show(value)}: no such value{nearest(str(value), words)}"
    return f"{where}: {f'{key}.' if key else ''}{what}"


def _words(option: Any) -> list[str]:
    """The values of a choice."""
    if isinstance(option, type) and issubclass(option, enum.Enum):
        return [str(member.value) for member in option]
    return [str(word) for word in typing.get_args(option)] if typing.get_origin(option) is Literal else []


def _find(raw: Any, type_: Any, path: str) -> tuple[Any, Any, str]:
    """Value, type and dotted key at msgspec's path, which writes `[...]` for whatever key of a table is at fault."""
    key = ""
    for part in re.findall(r"[^.\[\]]+|\.\.\.", path):
        table, item = struct(type_), _item(type_)
        if isinstance(raw, list):
            raw, type_, key = raw[int(part)], item, f"{key}[{part}]"
            continue
        name = next(name for name in raw if not _fits(raw[name], item)) if part == "..." else part
        raw, type_, key = raw[name], fields(table)[name] if table else item, f"{key}.{name}" if key else name
    return raw, type_, key


def _fits(value: Any, type_: Any) -> bool:
    try:
        msgspec.convert(value, type_)
    except msgspec.ValidationError:
        return False
    return True


def show(value: Any) -> str:
    text = msgspec.json.encode(value, enc_hook=str).decode()
    return text if len(text) <= 60 else text[:57] + "..."


def bracketed(key: str) -> str:
    return re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", key)


def origin_of(key: str, raw: dict[str, Any], given: dict[str, str]) -> str:
    for put in reversed(given):  # later ones win
        if _covers(put, key):
            return given[put]
    at: Any = raw
    for part in re.findall(r"[^.\[\]]+", key):
        at = at[int(part)] if isinstance(at, list) else at.get(part) if isinstance(at, dict) else None
        if at is None:
            return "default"
    return "file"


def _covers(put: str, key: str) -> bool:
    return key == put or key.startswith((f"{put}.", f"{put}["))
