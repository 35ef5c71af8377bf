"""The commands but `edge run` and `cloud run`: one table of thin modules, each imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tierline.core.catalog import nearest
from tierline.core.errors import UsageError

COMMANDS = (
    "demo",
    "train",
    "job",
    "model",
    "up",
    "bench",
    "doctor",
    "status",
    "plan",
    "tune",
    "explain",
    "profile",
    "cloud",
    "edge",
    "node",
    "algo",
    "kernels",
    "engine",
    "config",
)
"""Name of a command = module `tierline.cli.commands.NAME`, whose `app` it is; in the order of the help."""

# The class is private to typer, or click's, depending on typer's version; every usage error derives from it.
_ClickError: Any = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")

_INTERRUPTED = 130
"""What newer versions of typer return where older ones raise Abort."""


class Lazy(TyperGroup):
    """Imports a command's module when the command is run, or listed."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            raise UsageError(f"no command {cmd_name!r}{nearest(cmd_name, COMMANDS)}")
        command = typer.main.get_command(importlib.import_module(f"tierline.cli.commands.{cmd_name}").app)
        command.name = cmd_name
        return command


root = typer.Typer(
    name="tierline",
    cls=Lazy,
    help="One neural network across devices, edge nodes and a cloud.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@root.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    pass


def run_app(arguments: Sequence[str]) -> int:
    """Run one command; its exit code. Raises TierlineError."""
    if list(arguments) == ["--version"]:
        print(f"tierline {version()}")
        return 0
    command: Any = typer.main.get_command(root)
    try:
        result = command.main(args=list(arguments) or ["--help"], prog_name="tierline", standalone_mode=False)
    except _ClickError as error:
        path = error.ctx.command_path if getattr(error, "ctx", None) else "tierline"
        message = error.format_message().rstrip(".").replace(": Value error, ", ": ")
        raise UsageError(f"{message[:1].lower()}{message[1:]}; see `{path} --help`") from error
    except typer.Abort:
        raise KeyboardInterrupt from None
    if result == _INTERRUPTED:
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0


def version() -> str:
    """The installed version; `source tree` where nothing is installed."""
    from importlib import metadata

    try:
        return metadata.version("tierline")
    except metadata.PackageNotFoundError:
        return "(source tree)"
