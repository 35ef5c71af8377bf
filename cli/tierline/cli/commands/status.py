"""`tierline status`: a node and everything below it."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Any

import typer

from tierline.cli.identity import IdentityOption, identity
from tierline.cli.output import Format, FormatOption, OutputOption, emit

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def status(
    address: Annotated[str, typer.Argument(help="host:port of a node with children.")] = "127.0.0.1:7443",
    state_dir: IdentityOption = None,
    form: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> None:
    """Show a running node and all nodes below it."""
    from tierline.core.link.ask import ask_status

    nodes = asyncio.run(ask_status(address, identity(state_dir)))
    emit([_row(node, record) for node, record in nodes.items()], form, output, nodes)
    for record in nodes.values():
        for line in _tuning(record.get("tuning", {})):
            print(line, file=sys.stderr)


def _tuning(record: dict[str, Any]) -> list[str]:
    """What the root says of the Plan it was tuned to: what is measured, and what came of it."""
    measured = record.get("measured", {})
    now = [
        f"{name} {measured.get(name, '?')} ({low:g} to {high:g})"
        for name, (low, high) in record.get("valid", {}).items()
    ]
    said = [f"measured now, and what the Plan holds for: {'; '.join(now)}"] if now else []
    decided = [
        f"{d['at']} plan {d['plan']}: {', '.join(d['drift'])}: {d['did']}: {d['why']}"
        for d in record.get("decisions", ())
    ]
    return said + decided


def _row(node: str, record: dict[str, Any]) -> dict[str, Any]:
    return {
        "node": node,
        "tier": record.get("tier", ""),
        "parent": record.get("parent", ""),
        "connected": "yes" if record.get("connected") else "no",
        "views": " ".join(record.get("views", ())),
        "model": record.get("model", ""),
        "plan": record.get("plan", ""),
        "in_flight": record.get("in_flight", ""),
        "counts": " ".join(f"{key}={value}" for key, value in record.get("counts", {}).items()),
        "engines": "; ".join(f"{key} {value}" for key, value in record.get("engines", {}).items() if value != "ready"),
    }
