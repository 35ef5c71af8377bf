"""`tierline cloud`: the root of a hierarchy, and its certificate authority."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tierline.cli.output import Format, FormatOption, OutputOption, StateDirOption, emit
from tierline.cli.run import run_node
from tierline.core.errors import UsageError

app = typer.Typer(help="Run the cloud, or prepare it for mutual TLS.", rich_markup_mode=None, add_completion=False)


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run(ctx: typer.Context) -> int:
    """Run the cloud: tierline cloud run -c cloud.toml."""
    return run_node("cloud", ctx.args)


@app.command()
def init(
    host: Annotated[list[str], typer.Option("--host", help="Name or IP address nodes dial; repeatable.")],
    name: Annotated[str, typer.Option(help="Name of a new authority.")] = "tierline fleet",
    state_dir: StateDirOption = None,
    ca_cert: Annotated[Path | None, typer.Option(help="Your own authority's certificate.")] = None,
    ca_key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
    days: Annotated[int, typer.Option(min=1, help="How long the cloud's certificate is valid.")] = 365,
    form: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> None:
    """Make the certificate authority (or take yours) and certify this cloud. Run it again to change hosts or renew."""
    from tierline.cloud.init import init_cloud
    from tierline.core.config.sections import default_state_dir

    if (ca_cert is None) != (ca_key is None):
        raise UsageError("cloud init: give --ca-cert and --ca-key together")
    ca = (ca_cert, ca_key) if ca_cert and ca_key else None
    report = init_cloud(state_dir or default_state_dir("cloud"), name, host, ca, days=days)
    facts = {
        "authority": f"{report.authority}: {report.authority_file}",
        "fingerprint": report.fingerprint,
        "certificate": str(report.files.cert),
        "hosts": ", ".join(report.hosts),
        "expires": f"{report.expires:%Y-%m-%d}",
    }
    emit([{"what": key, "value": value} for key, value in facts.items()], form, output, facts)
