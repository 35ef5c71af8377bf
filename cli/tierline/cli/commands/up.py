"""`tierline up`: a whole hierarchy on this machine, from one file."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from tierline.cli.output import SetOption

app = typer.Typer(rich_markup_mode=None, add_completion=False)

_LOOK_S = 0.5


@app.command()
def up(
    file: Annotated[Path, typer.Argument(help="hierarchy.toml")],
    overrides: SetOption = None,
    run_dir: Annotated[
        Path | None,
        typer.Option("--run-dir", help="Files, logs and answers of this run. Default: below XDG_STATE_HOME."),
    ] = None,
    wait_s: Annotated[float, typer.Option("--wait", min=1.0, help="Seconds until all must be ready.")] = 30.0,
) -> None:
    """Run a whole hierarchy on this machine, every node its own process, until Ctrl-C."""
    from tierline.cli.folders import fresh_run_dir
    from tierline.cli.hierarchy import fleet_spec
    from tierline.cli.signals import interrupt_on_signals
    from tierline.cli.supervisor import Fleet
    from tierline.cloud.hierarchy import load_file
    from tierline.core.config.sections import default_state_dir

    loaded = load_file(file, overrides=overrides or [])
    name = loaded.value.name
    folder = (
        run_dir or default_state_dir("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    ).absolute()
    spec = fleet_spec(loaded, folder)
    fresh_run_dir(folder)
    if loaded.value.goal is not None and not loaded.value.tuned:
        print(f"{file.name}: [goal] is for `tierline tune`; thresholds are those of the model", file=sys.stderr)
    num_nodes = len(spec.hierarchy.nodes)
    _say(f"starting {num_nodes} nodes; logs in {folder / 'logs'}")
    interrupt_on_signals()
    fleet = Fleet(
        spec,
        folder,
        on_line=lambda node, line: _say(f"{node}: {line}"),
        on_ready=lambda node: _say(f"ready: {node}"),
    )
    try:
        fleet.start(wait_s)
        for node in spec.hierarchy.nodes:
            if node.views:
                _say(f"{node.id} takes questions on {fleet.address(node.id)}")
        _say(f"{num_nodes} nodes run, the root listens on {fleet.address(fleet.root)}; Ctrl-C stops them")
        while True:
            time.sleep(_LOOK_S)
            fleet.check()
    except KeyboardInterrupt:
        _say("stopping")
    finally:
        fleet.stop()
    _say("all stopped")


def _say(line: str) -> None:
    """One write per line, since nodes' lines come from threads."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
