"""`tierline kernels`: the compiled inner loops of the codecs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from tierline.cli.output import Format, FormatOption, OutputOption, emit

app = typer.Typer(help="Compile the codecs' inner loops.", rich_markup_mode=None, add_completion=False)


@app.command()
def build(
    cxx: Annotated[str, typer.Option("--cxx", help="C++ compiler; else CXX, c++, g++ or clang++.")] = "",
    gpu: Annotated[
        list[str] | None,
        typer.Option("--gpu", help="Make cubins for this architecture too: sm_87, ..., or all. Can be repeated."),
    ] = None,
    form: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> None:
    """Compile now what the first use would compile, into the cache that all programs of this user share."""
    from tierline.core.errors import ConfigError, MissingDependency
    from tierline.kernels.build import BuildError, library

    try:
        path = library(cxx or None)
    except BuildError as error:
        raise MissingDependency(f"{error}; without a library codecs run in NumPy, slower") from None
    wanted = gpu or []
    made = _cubins(wanted)
    emit([_built("cpu", path), *(_built(target, found) for target, found in made.items())], form, output)
    refused = [target for target in wanted if isinstance(made.get(target), str)]
    if refused:
        raise ConfigError(f"--gpu {', '.join(refused)}: this CUDA compiler makes no cubin for it")


@app.command()
def show(form: FormatOption = Format.TABLE, output: OutputOption = None) -> None:
    """Which kernels this machine's programs use, and why."""
    from tierline.cli.doctor import kernels

    check = kernels()
    emit([{"kernels": check.found, "state": check.state, "fix": check.fix}], form, output)


def _cubins(wanted: list[str]) -> dict[str, Path | str]:
    """A file per architecture, or why the CUDA compiler refuses it."""
    from tierline.core.errors import ConfigError, MissingDependency
    from tierline.kernels import cubin
    from tierline.kernels.build import BuildError

    if not wanted:
        return {}
    every = cubin.TARGETS if "all" in wanted else ()
    targets = tuple(dict.fromkeys((*every, *(name for name in wanted if name != "all"))))
    for name in targets:
        if not re.fullmatch(r"sm_\d{2,3}[a-z]?", name):
            raise ConfigError(f"--gpu {name}: an architecture such as {', '.join(cubin.TARGETS)}, or all")
    try:
        return cubin.build(targets, told=_tell)
    except BuildError as error:
        raise MissingDependency(f"{error}; install a CUDA toolkit or the package nvidia-cuda-nvrtc") from None


def _tell(target: str, found: Path | str) -> None:
    """Each takes many seconds."""
    words = found if isinstance(found, Path) else f"none: {found.splitlines()[0]}"
    print(f"{target}: {words}", file=sys.stderr, flush=True)


def _built(target: str, path: Path | str) -> dict[str, str | int]:
    if isinstance(path, str):
        return {"target": target, "bytes": 0, "library": f"none: {path}"}
    return {"target": target, "bytes": path.stat().st_size, "library": str(path)}
