"""`tierline algo`: what is in the rooms, read from their files without importing any framework."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from pathlib import Path
from typing import Annotated

import typer

from tierline.cli.output import Format, FormatOption, OutputOption, emit, write
from tierline.core import catalog
from tierline.core.errors import ConfigError

app = typer.Typer(help="List and explain algorithms.", rich_markup_mode=None, add_completion=False)


@app.command()
def ls(
    room: Annotated[str | None, typer.Argument(help=f"One of {', '.join(catalog.ROOMS)}; all if left out.")] = None,
    form: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> None:
    """List algorithms, each with its one sentence."""
    rooms = [_known(room)] if room else list(catalog.ROOMS)
    rows = [
        {"room": r, "name": name, "what": " ".join(_doc(r, name).partition("\n\n")[0].split())}
        for r in rooms
        for name in catalog.names(r)
    ]
    emit(rows, form, output)


_URI_TYPES = ("int", "float", "bool", "str")
_GIVEN = ("location", "view", "view_index")


@app.command()
def show(room: str, name: str, output: OutputOption = None) -> None:
    """Print an algorithm's documentation and its options."""
    classes = catalog.parts(_known(room), name)
    parts = [f"{room} {name}", _doc(room, name)]
    for part, cls in classes.items():
        options = [p for p in inspect.signature(cls).parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
        title = "Options" if len(classes) == 1 else f"Options of its {part}"
        if room in ("source", "sink"):  # the rest is given by tierline
            title = "Options, after `?` in the URI"
            options = [p for p in options if p.annotation in _URI_TYPES and p.name not in _GIVEN]
        parts.append((inspect.getdoc(cls) or "") if len(classes) == 1 else "")
        if options:
            parts.append(f"{title}:\n" + "\n".join(f"  {_option(option)}" for option in options))
    write("\n\n".join(filter(None, parts)) + "\n", output)


def _option(parameter: inspect.Parameter) -> str:
    default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
    return f"{parameter.name}: {parameter.annotation}{default}"


def _known(room: str) -> str:
    if room not in catalog.ROOMS:
        raise ConfigError(f"no such room: {room!r}{catalog.nearest(room, tuple(catalog.ROOMS))}")
    return room


def _doc(room: str, name: str) -> str:
    spec = None if name.endswith(".py") else importlib.util.find_spec(f"{catalog.ROOMS[room]}.{name}")
    origin = spec.origin if spec else name
    if not origin or not Path(origin).is_file():
        return ""
    return ast.get_docstring(ast.parse(Path(origin).read_text("utf-8"))) or ""
