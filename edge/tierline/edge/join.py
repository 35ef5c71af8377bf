"""`node join`: make a key on this node and trade an invitation for a certificate. The agent never loads this file."""

from __future__ import annotations

import asyncio
import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tierline.core.errors import SecurityError
from tierline.core.invite import Invitation
from tierline.core.link.enrol import claim
from tierline.core.link.tls import TlsFiles, write_identity
from tierline.core.pki import check_host, describe, fingerprint, new_key_and_csr
from tierline.core.types import NodeId


@dataclass(frozen=True, slots=True)
class JoinReport:
    """What `node join` wrote. `fingerprint` is the authority's, to compare with the one `cloud init` printed."""

    node_id: NodeId
    files: TlsFiles
    hosts: tuple[str, ...]
    fingerprint: str
    expires: datetime.datetime


def join(line: str, state_dir: Path, hosts: Sequence[str] = ()) -> JoinReport:
    """Enrol this node with a pasted invitation; `hosts` are the names and addresses its children will dial.

    Replaces a former identity. Raises SecurityError and what `claim` raises; then nothing was changed.
    """
    invitation = Invitation.decode(line)
    names = [check_host(host) for host in hosts]
    _check_writable(state_dir)  # before the single-use token is spent
    key_pem, csr_pem = new_key_and_csr(invitation.node_id, names)
    cert_pem, ca_pem = asyncio.run(claim(invitation, csr_pem, names))
    issued = describe(cert_pem)
    if issued.node_id != invitation.node_id:
        raise SecurityError(f"{invitation.address}: certified {issued.node_id!r}, not {invitation.node_id!r}")
    files = write_identity(state_dir, ca_pem, cert_pem, key_pem)
    return JoinReport(invitation.node_id, files, issued.hosts, fingerprint(ca_pem), issued.expires)


def _check_writable(state_dir: Path) -> None:
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise SecurityError(f"{state_dir}: cannot be made ({error.strerror}); choose another state_dir") from error
    if not os.access(state_dir, os.W_OK | os.X_OK):
        raise SecurityError(f"{state_dir}: cannot be written; choose another state_dir")
