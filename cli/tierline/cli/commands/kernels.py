"""`tierline kernels`: the compiled inner loops of the codecs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tierline.cli.output import Format, FormatOption, OutputOption, emit

app = typer.Typer(help="Compile the codecs' inner loops.", rich_markup_mode=None, add_completion=False)


@app.command()
def build(
    cxx: Annotated[str, typer.Option("--cxx", help="C++ compiler; else CXX, c++, g++ or clang++.")] = "",
    form: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> None:
    """Compile now what the first use would compile, into the cache that all programs of this user share."""
    from tierline.core.errors import MissingDependency
    from tierline.kernels.build import BuildError, library

    try:
        path = library(cxx or None)
    except BuildError as error:
        raise MissingDependency(f"{error}; without a library codecs run in NumPy, slower") from None
    emit([_built("cpu", path)], form, output)


@app.command()
def show(form: FormatOption = Format.TABLE, output: OutputOption = None) -> None:
    """Which kernels this machine's programs use, and why."""
    from tierline.cli.doctor import kernels

    check = kernels()
    emit([{"kernels": check.found, "state": check.state, "fix": check.fix}], form, output)


def _built(target: str, path: Path) -> dict[str, str | int]:
    return {"target": target, "bytes": path.stat().st_size, "library": str(path)}
