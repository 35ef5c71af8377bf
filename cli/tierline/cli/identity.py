"""Who asks: what commands prove to a running hierarchy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tierline.core.link.tls import TlsFiles

IdentityOption = Annotated[
    Path | None, typer.Option("--state-dir", help="Folder whose pki/ proves who asks; without it, no TLS.")
]


def identity(state_dir: Path | None) -> TlsFiles | None:
    """Certificate and key in a node's state folder; None for plain connections."""
    from tierline.core.link.tls import TlsFiles

    return TlsFiles.of_state(state_dir) if state_dir is not None else None
