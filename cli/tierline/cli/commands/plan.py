"""`tierline plan`: the Plan of a running hierarchy, changed while samples flow: its knobs, or what runs where."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from tierline.cli.identity import IdentityOption, identity
from tierline.cli.output import Format, FormatOption, OutputOption, SetOption, emit
from tierline.core.bundle import Bundle
from tierline.core.errors import PlanError, UsageError

app = typer.Typer(help="Show a running Plan; change it.", rich_markup_mode=None, add_completion=False)

Address = Annotated[str, typer.Argument(help="host:port of the hierarchy's root.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check and print, change nothing.")]
DEFAULT = "127.0.0.1:7443"


@app.command()
def ls(
    address: Address = DEFAULT,
    state_dir: IdentityOption = None,
    form: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> None:
    """List the Plans a root has put in force, oldest first; the last one is in force."""
    plans = _plans(address, state_dir)
    rows = [{"version": p["version"], "made_at": p.get("made_at", ""), "why": p.get("why", "")} for p in plans]
    emit(rows, form, output)


@app.command()
def show(
    address: Address = DEFAULT,
    version: Annotated[int, typer.Option("--version", min=0, help="One that is kept; 0: the one in force.")] = 0,
    state_dir: IdentityOption = None,
    form: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> None:
    """Show a Plan's knobs by the keys that change them; the whole Plan with --format json."""
    plans = _plans(address, state_dir)
    found = [plan for plan in plans if plan["version"] == version or not version]
    if not found:
        kept = ", ".join(str(plan["version"]) for plan in plans)
        raise PlanError(f"{address} keeps no plan {version}; there are: {kept or 'none'}")
    emit(_rows(found[-1]), form, output, found[-1])


@app.command()
def apply(
    address: Address = DEFAULT,
    set_: SetOption = None,
    state_dir: IdentityOption = None,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="Folder of another Bundle; missing files are sent to the root.")
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", help="JSON of a whole Plan for --bundle; else one is made from the hierarchy."),
    ] = None,
    tuned: Annotated[
        Path | None,
        typer.Option("--tuned", help="Folder of `tierline tune --out`: its Bundle and Plan, tuned again on drift."),
    ] = None,
    dry_run: DryRun = False,
    form: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> None:
    """Turn knobs, e.g. --set codecs.device=affine:4, --set links.NODE=TOKEN, --set thresholds.local=0.3.

    Keys are those of cloud.toml's table [plan]. Nodes take the new version without a pause. Another Bundle (--bundle)
    of the same task and views is loaded everywhere first; only when all nodes are ready do new samples use it.
    """
    if tuned is not None and (bundle is not None or plan is not None):
        raise UsageError("--tuned has a Bundle and a Plan: give neither --bundle nor --plan with it")
    if not set_ and bundle is None and tuned is None:
        raise UsageError(
            "nothing to change: give --set KEY=VALUE (`tierline plan show` lists the keys), --bundle or --tuned"
        )
    if plan is not None and bundle is None:
        raise UsageError("--plan is a Plan for another Bundle: give --bundle FOLDER, too")
    what = _tuned(tuned) if tuned is not None else {}
    if bundle is not None:
        what = {"bundle": Bundle.open(bundle), "plan": _read(plan) if plan else b""}
    _change(address, state_dir, form, output, settings=set_ or [], dry_run=dry_run, **what)


@app.command()
def rollback(
    version: Annotated[int, typer.Argument(min=1, help="The Plan that comes back, as a new version.")],
    address: Address = DEFAULT,
    state_dir: IdentityOption = None,
    dry_run: DryRun = False,
    form: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> None:
    """Take an earlier Plan again: its knobs, and its Bundle where that was another."""
    _change(address, state_dir, form, output, rollback_to=version, dry_run=dry_run)


def _tuned(folder: Path) -> dict[str, Any]:
    from tierline.cloud.tuner.job import BUNDLE, planned_in
    from tierline.cloud.tuner.tuning import MAX_BYTES, tuning_in

    document = tuning_in(folder).document()
    if len(document) > MAX_BYTES:
        raise UsageError(f"--tuned {folder}: {len(document) >> 20} MiB to send; tune with fewer codecs (--codec)")
    return {"bundle": Bundle.open(folder / BUNDLE), "plan": planned_in(folder).document(), "tuning": document}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PlanError(f"{path}: cannot be read ({error.strerror})") from None


def _plans(address: str, state_dir: Path | None) -> list[dict[str, Any]]:
    from tierline.core.link.ask import ask_plans

    return asyncio.run(ask_plans(address, identity(state_dir)))


def _change(address: str, state_dir: Path | None, form: Format, output: Path | None, **what: Any) -> None:
    from tierline.core.link.ask import change_plan

    former = {row["key"]: row["value"] for row in _rows(_plans(address, state_dir)[-1])}
    made = asyncio.run(change_plan(address, identity(state_dir), **what))
    now = {row["key"]: row["value"] for row in _rows(made)}
    now.update({f"switch.{key}": str(value) for key, value in made.get("switch", {}).items() if value})
    rows = [
        {"key": key, "before": former.get(key), "now": now.get(key)}
        for key in dict.fromkeys([*former, *now])
        if former.get(key) != now.get(key)
    ]
    emit(rows or [{"key": "version", "before": former["version"], "now": now["version"]}], form, output, made)


def _rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    rows = [{"key": "version", "value": record["version"]}]
    if "plan" in record:
        rows.append({"key": "model", "value": record["plan"]["model"]})
    for key, value in record.get("knobs", {}).items():
        if isinstance(value, dict):
            rows += [{"key": f"{key}.{name}", "value": one} for name, one in value.items()]
        else:
            rows.append({"key": key, "value": value})
    return rows
