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
from tierline.core.errors import ConfigError, MissingDependency, UsageError

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
        {"room": r, "name": name, **(_codec(name) if rooms == ["codec"] else {}), "what": _sentence(r, name)}
        for r in rooms
        for name in catalog.names(r)
    ]
    emit(rows, form, output)


def _sentence(room: str, name: str) -> str:
    return " ".join(_doc(room, name).partition("\n\n")[0].split())


def _codec(name: str) -> dict[str, str]:
    """What a token may say of a codec: its role among the stages, its dtypes, its options."""
    try:
        cls = catalog.load("codec", name)
    except MissingDependency as error:
        return {"role": f"not here: {error}", "dtypes": "", "options": ""}
    options = [f"{p.name}={p.default}" for p in inspect.signature(cls).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return {"role": cls.role, "dtypes": " ".join(getattr(cls, "dtypes", ())), "options": " ".join(options)}


_URI_TYPES = ("int", "float", "bool", "str")
_GIVEN = ("location", "view", "view_index")


@app.command()
def show(
    room: Annotated[str, typer.Argument(help="Its room, or its name where one room alone has it.")],
    name: Annotated[str, typer.Argument(help="Its name in the room.", show_default=False)] = "",
    output: OutputOption = None,
) -> None:
    """Print an algorithm's documentation and its options; of a codec's token, those of its stages."""
    room, name = (room, name) if name else _find(room)
    if room == "codec" and ("+" in name or ":" in name):
        write(_token(name), output)
        return
    write(_text(room, name) + "\n", output)


def _token(token: str) -> str:
    """Stages of a codec's token with what each does, then the text of each. Raises UnknownCodec."""
    from tierline.core.coding import codec_for, stage_names

    codec, names = codec_for(token), stage_names(token)
    canonical = "" if codec.token == token else f", on the wire {codec.token}"
    stages = zip(token.split("+"), names, strict=True)
    lines = [f"  {stage} ({_codec(name)['role']}): {_sentence('codec', name)}" for stage, name in stages]
    head = f"codec {token}{canonical}\n\nStages:\n" + "\n".join(lines)
    return "\n\n".join([head, *(_text("codec", name) for name in dict.fromkeys(names))]) + "\n"


def _text(room: str, name: str) -> str:
    classes = catalog.parts(_known(room), name)
    parts = [f"{room} {name}", _doc(room, name)]
    for part, cls in classes.items():
        options = [p for p in inspect.signature(cls).parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
        title = "Options" if len(classes) == 1 else f"Options of its {part}"
        if room in ("source", "sink"):  # the rest is given by tierline
            title = "Options, after `?` in the URI"
            options = [p for p in options if p.annotation in _URI_TYPES and p.name not in _GIVEN]
        doc = (inspect.getdoc(cls) or "") if len(classes) == 1 else ""
        parts.append("" if doc.endswith(f" `{name}`.") and "\n" not in doc else doc)  # that would say the name again
        if options:
            parts.append(f"{title}:\n" + "\n".join(f"  {_option(option)}" for option in options))
    return "\n\n".join(filter(None, parts))


def _option(parameter: inspect.Parameter) -> str:
    default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
    return f"{parameter.name}: {parameter.annotation}{default}"


def _find(name: str) -> tuple[str, str]:
    """Room and name of an algorithm that is given by its name alone, or a codec by its token."""
    if "+" in name or ":" in name:
        return "codec", name
    rooms = [room for room in catalog.ROOMS if name in catalog.names(room)]
    if len(rooms) > 1:
        raise UsageError(f"{name!r} is in the rooms {', '.join(rooms)}; write `tierline algo show ROOM {name}`")
    if not rooms:
        known = [name for room in catalog.ROOMS for name in catalog.names(room)]
        raise ConfigError(f"no algorithm {name!r}{catalog.nearest(name, known)}")
    return rooms[0], name


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
