"""`--format table|json|csv` and `--output FILE`, the same for every command that prints something."""

from __future__ import annotations

import csv
import enum
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tierline.core.errors import ConfigError


class Format(str, enum.Enum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


FormatOption = Annotated[Format, typer.Option("--format", help="How to print.")]
OutputOption = Annotated[Path | None, typer.Option("--output", help="Write here instead.", show_default=False)]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=c", help="Override one key; repeatable.")]
StateDirOption = Annotated[
    Path | None, typer.Option("--state-dir", help="Keys, invitations, caches. Default: below XDG_STATE_HOME.")
]

Row = Mapping[str, Any]


def emit(rows: Sequence[Row], form: Format, output: Path | None, document: Any = None) -> None:
    """Print rows of equal keys; `document` is what JSON shows instead of the rows."""
    if form is Format.JSON:
        text = json.dumps(list(rows) if document is None else document, indent=1, default=str) + "\n"
    elif form is Format.CSV:
        text = _csv(rows)
    else:
        text = _table(rows)
    write(text, output)


def write(text: str, output: Path | None, flag: str = "--output") -> None:
    """Print text, or write it to the file that a flag names. Raises ConfigError."""
    if output is None:
        print(text, end="", flush=True)
        return
    try:
        output.write_text(text, "utf-8")
    except OSError as error:
        raise ConfigError(f"{flag} {output}: cannot be written: {error.strerror}") from None


def _csv(rows: Sequence[Row]) -> str:
    sink = io.StringIO()
    if rows:
        writer = csv.DictWriter(sink, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return sink.getvalue()


def _table(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    lines = [[str(key) for key in rows[0]], *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join("  ".join(map(str.ljust, line, widths)).rstrip() + "\n" for line in lines)


def _cell(value: Any) -> str:
    return "" if value is None else " ".join(str(value).splitlines())
