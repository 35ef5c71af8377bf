"""`tierline doctor`: what works on this machine, and how to mend what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tierline.cli.doctor import run_checks
from tierline.cli.output import Format, FormatOption, OutputOption, emit

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def doctor(
    state_dir: Annotated[Path | None, typer.Option("--state-dir", help="The folder that nodes will use.")] = None,
    form: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> int:
    """Check this machine; each failing line says how to mend it. Exit code 1 if something required fails."""
    checks = run_checks(state_dir)
    emit(
        [{"check": c.name, "state": c.state, "found": c.found, "fix": c.fix} for c in checks],
        form,
        output,
    )
    return int(any(check.state == "fail" for check in checks))
