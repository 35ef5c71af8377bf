"""`tierline config`: check a file, or see what it amounts to and where each value comes from."""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tierline.cli.output import Format, FormatOption, OutputOption, SetOption, emit, write
from tierline.cli.toml import dumps
from tierline.core.config import Loaded, flatten, read_document
from tierline.core.errors import TierlineError

app = typer.Typer(help="Check and show configuration files.", rich_markup_mode=None, add_completion=False)


class Kind(str, enum.Enum):
    """The files users write."""

    AUTO = "auto"
    AGENT = "agent"
    CLOUD = "cloud"
    HIERARCHY = "hierarchy"


KindOption = Annotated[Kind, typer.Option(help="What the file is; auto: seen from its keys.")]
FileArgument = Annotated[Path, typer.Argument(help="agent.toml, cloud.toml or hierarchy.toml")]


@app.command()
def check(file: FileArgument, overrides: SetOption = None, kind: KindOption = Kind.AUTO) -> int:
    """Check a file and what it names: engines, sources, sinks, Bundles, certificates. Nothing is started.

    One line for each thing that is wrong; the exit code is that of the first.
    """
    from tierline.cli import check as checks

    kind = _kind(file, kind)
    loaded = _load(file, kind, overrides or [])
    look: dict[Kind, Any] = {
        Kind.AGENT: checks.check_agent,
        Kind.CLOUD: checks.check_cloud,
        Kind.HIERARCHY: checks.check_hierarchy,
    }
    errors: list[TierlineError] = look[kind](loaded)
    for error in errors:
        print(f"tierline: {error}", file=sys.stderr)
    if errors:
        return errors[0].exit_code
    print(f"{file}: good ({kind.value})")
    return 0


@app.command()
def show(
    file: FileArgument,
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value comes from.")] = False,
    overrides: SetOption = None,
    kind: KindOption = Kind.AUTO,
    form: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> None:
    """Print what a file amounts to with flags, environment and defaults; paths are absolute."""
    loaded = _load(file, _kind(file, kind), overrides or [])
    if origin or form is not Format.TABLE:
        rows = [{"key": k, "value": v, "origin": loaded.origin.get(k, "default")} for k, v in flatten(loaded.value)]
        emit(rows, form, output)
    else:
        write(dumps(loaded.value), output)


def _kind(file: Path, kind: Kind) -> Kind:
    if kind is not Kind.AUTO:
        return kind
    document = read_document(file)
    if "hierarchy" in document:
        return Kind.CLOUD
    return Kind.HIERARCHY if "model" in document or isinstance(document.get("node"), list) else Kind.AGENT


def _load(file: Path, kind: Kind, overrides: list[str]) -> Loaded[Any]:
    if kind is Kind.AGENT:
        from tierline.edge.config import load_agent

        return load_agent(file, overrides=overrides)
    if kind is Kind.CLOUD:
        from tierline.cloud.config import load_cloud

        return load_cloud(file, overrides=overrides)
    from tierline.cloud.hierarchy import load_file

    return load_file(file, overrides=overrides)
