"""`tierline profile`: the nodes and links of a running hierarchy, measured for the tuner."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tierline.cli.folders import check_file
from tierline.cli.identity import IdentityOption, identity
from tierline.cli.output import Format, FormatOption, OutputOption, emit, write
from tierline.core.catalog import nearest
from tierline.core.errors import LinkUnavailable, UsageError
from tierline.core.link.fleet import ProfileStep, ProfileWish
from tierline.core.profile import Profile
from tierline.core.types import PRECISIONS

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def profile(
    address: Annotated[str, typer.Argument(help="host:port of the hierarchy's root.")] = "127.0.0.1:7443",
    out: Annotated[Path | None, typer.Option("--out", help="Write the whole Profile, JSON, here.")] = None,
    node: Annotated[list[str] | None, typer.Option("--node", help="Measure this node only; repeatable.")] = None,
    engine: Annotated[
        list[str] | None, typer.Option("--engine", help="Engine token; repeatable. Default: what each node runs.")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option("--batch", min=1, max=4096, help="Batch size; repeatable. Default: 1 and 8.")
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option("--precision", help="Besides float32; repeatable. Default: all that a node's engines compute in."),
    ] = None,
    codec: Annotated[list[str] | None, typer.Option("--codec", help="Codec token; repeatable.")] = None,
    run_s: Annotated[float, typer.Option("--run-s", min=0.01, max=60, help="Longest time for one number.")] = 0.5,
    state_dir: IdentityOption = None,
    form: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> None:
    """Have every node measure its pieces of the network, codecs and link, while it goes on answering."""
    from tierline.core.link.ask import ask_profile

    check_file("--out", out)
    precisions = check_precisions(precision)
    wish = ProfileWish(
        tuple(node or ()), tuple(engine or ()), tuple(batch or ()), tuple(codec or ()), run_s, precisions
    )
    made = asyncio.run(ask_profile(address, wish, identity(state_dir), said=_say))
    if out is not None:
        write(made.document().decode() + "\n", out, "--out")
    emit([_row(made, name) for name in made.nodes], form, output)
    if made.missing:
        named = "; ".join(f"{name}: {why}" for name, why in made.missing.items())
        raise LinkUnavailable(f"not all of the hierarchy was measured: {named}")


def check_precisions(given: list[str] | None) -> tuple[str, ...]:
    """Raises UsageError for one that there is none of."""
    for name in given or ():
        if name not in PRECISIONS:
            raise UsageError(f"--precision {name}: no such precision{nearest(name, PRECISIONS)}")
    return tuple(given or ())


def _say(step: ProfileStep) -> None:
    print(f"{step.node or 'root'}: {step.state}", file=sys.stderr, flush=True)


def _row(made: Profile, name: str) -> dict[str, Any]:
    own, link = made.nodes[name], made.links.get(name)
    return {
        "node": name,
        "tier": own.tier.value,
        "sections": len(own.sections),
        "heads": len(own.heads),
        "codecs": len(own.codecs),
        "unstable": sum(not time.is_stable for time in own.sections) + sum(not time.is_stable for time in own.heads),
        "skipped": len(own.skipped),
        "busy_share": own.busy_share,
        "rtt_ms": link.rtt_ms if link else None,
        "up_mbit": round(link.up_bps / 1e6, 3) if link else None,
        "down_mbit": round(link.down_bps / 1e6, 3) if link else None,
    }
