"""`tierline node`: inviting, joining, listing and revoking nodes."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tierline.cli.output import Format, FormatOption, OutputOption, StateDirOption, emit, write
from tierline.core.config.sections import default_state_dir
from tierline.core.errors import SecurityError

if TYPE_CHECKING:
    from tierline.core.invite import InviteStore

app = typer.Typer(help="Invite nodes, join a fleet, list and revoke.", rich_markup_mode=None, add_completion=False)

HostOption = Annotated[list[str] | None, typer.Option("--host", help="Name or IP address of the node; repeatable.")]


@app.command()
def invite(
    node_id: Annotated[str, typer.Argument(help="The node's id in the hierarchy.")],
    address: Annotated[str, typer.Option(help="host:port where the cloud enrols ([enrol] listen in cloud.toml).")],
    host: HostOption = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="How long the line is good.")] = 15.0,
    state_dir: StateDirOption = None,
    output: OutputOption = None,
) -> None:
    """Print one line to paste on the node: a token that lets it join, once and soon. Run it on the cloud."""
    from tierline.cloud.init import invite as make

    invitation = make(_cloud(state_dir), node_id, address, hosts=host or (), minutes=minutes)
    write(invitation.encode() + "\n", output)


@app.command()
def join(
    line: Annotated[str, typer.Argument(help="What `tierline node invite` printed.")],
    host: HostOption = None,
    state_dir: StateDirOption = None,
    form: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> None:
    """Make a key on this machine and trade an invitation for a certificate."""
    from tierline.core.invite import Invitation
    from tierline.edge.join import join as enrol

    report = enrol(line, state_dir or default_state_dir(Invitation.decode(line).node_id), host or ())
    facts = {
        "node": report.node_id,
        "certificate": str(report.files.cert),
        "hosts": ", ".join(report.hosts),
        "authority": report.fingerprint,
        "expires": f"{report.expires:%Y-%m-%d}",
    }
    emit([{"what": key, "value": value} for key, value in facts.items()], form, output, facts)


@app.command()
def ls(state_dir: StateDirOption = None, form: FormatOption = Format.TABLE, output: OutputOption = None) -> None:
    """List invited, enrolled and revoked nodes. Run it on the cloud."""
    rows = [
        {
            "node": record.node_id,
            "state": record.state,
            "expires": f"{datetime.datetime.fromtimestamp(record.expires, datetime.timezone.utc):%Y-%m-%d %H:%M} UTC",
            "hosts": " ".join(record.hosts),
            "serial": record.serial,
        }
        for record in _store(state_dir).nodes()
    ]
    emit(rows, form, output)


@app.command()
def revoke(node_id: str, state_dir: StateDirOption = None) -> None:
    """End a node's certificates and open invitations. Run it on the cloud."""
    _store(state_dir).revoke(node_id)
    print(f"{node_id}: revoked; its connection ends within seconds, wherever it is connected to this fleet")


def _cloud(state_dir: Path | None) -> Path:
    return state_dir or default_state_dir("cloud")


def _store(state_dir: Path | None) -> InviteStore:
    from tierline.core.invite import InviteStore

    folder = _cloud(state_dir)
    if not (folder / "nodes.sqlite").is_file():
        raise SecurityError(f"{folder}: no fleet is kept here; run `tierline cloud init` first, or give --state-dir")
    return InviteStore(folder)
