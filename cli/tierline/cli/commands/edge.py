"""`tierline edge`: the node on this machine."""

from __future__ import annotations

import typer

from tierline.cli.run import run_node

app = typer.Typer(help="Run this machine as a device or an edge node.", rich_markup_mode=None, add_completion=False)


@app.callback()
def _group() -> None:
    pass


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run(ctx: typer.Context) -> int:
    """Run the agent: tierline edge run -c agent.toml."""
    return run_node("edge", ctx.args)
