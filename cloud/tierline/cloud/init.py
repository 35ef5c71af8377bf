"""`cloud init` and `node invite`: the fleet's authority, the cloud's own certificate, and lines to paste.

In state_dir: `authority/` holds `authority.json` (where certificate and key of the authority are) and, unless the user
brought an own one, `ca.pem` and `ca-key.pem`; `pki/` holds the cloud's own identity; `nodes.sqlite` the invitations.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from tierline.core.config.sections import check_id
from tierline.core.errors import SecurityError, UsageError
from tierline.core.invite import VALID_MINUTES, Invitation, InviteStore
from tierline.core.link.tls import TlsFiles, split_address, write_identity
from tierline.core.pki import (
    NODE_DAYS,
    Authority,
    check_host,
    create_authority,
    describe,
    fingerprint,
    issue_server,
    use_authority,
)
from tierline.core.types import NodeId

CLOUD = NodeId("cloud")


class _Paths(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Content of `authority/authority.json`: secrets stay where the user keeps them."""

    certificate: str
    key: str


@dataclass(frozen=True, slots=True)
class InitReport:
    """What `cloud init` made. `authority` says whether it is new, kept from an earlier run, or the user's own."""

    authority: Literal["created", "kept", "yours"]
    authority_file: Path
    fingerprint: str
    files: TlsFiles
    hosts: tuple[str, ...]
    expires: datetime.datetime


def init_cloud(
    state_dir: Path, name: str, hosts: Sequence[str], ca: tuple[Path, Path] | None = None, *, days: int = NODE_DAYS
) -> InitReport:
    """Make or take the authority and certify this cloud for `hosts`. Run it again to change hosts or to renew.

    `ca` is certificate and key of the user's own authority. Raises SecurityError.
    """
    names = tuple(dict.fromkeys(map(check_host, hosts)))
    if not names:
        raise SecurityError(
            "cloud init: name at least one host or IP address under which nodes reach the cloud (--host)"
        )
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    authority, paths, how = _settle_authority(state_dir, name, ca)
    cert_pem, key_pem = issue_server(authority, CLOUD, names, days)
    files = write_identity(state_dir, authority.pem, cert_pem, key_pem)
    issued = describe(cert_pem)
    InviteStore(state_dir).record(CLOUD, issued.serial, names, issued.expires.timestamp())
    return InitReport(how, Path(paths.certificate), fingerprint(authority.pem), files, names, issued.expires)


def open_authority(state_dir: Path) -> Authority:
    """The authority that `cloud init` settled on. Raises SecurityError."""
    paths = _read_paths(state_dir)
    if paths is None:
        raise SecurityError(f"{_paths_file(state_dir)}: there is no authority here; run `tierline cloud init` first")
    return use_authority(Path(paths.certificate), Path(paths.key))


def invite(
    state_dir: Path,
    node_id: str,
    address: str,
    *,
    hosts: Sequence[str] = (),
    minutes: float = VALID_MINUTES,
    wall_s: Callable[[], float] = time.time,
) -> Invitation:
    """Invite a node to enrol at `address` (host:port of the enrolment port); print its `encode()`.

    `hosts` limits the names the node may claim, and allows one that another node has. Raises UsageError for an id that
    no hierarchy would take, else SecurityError.
    """
    try:
        check_id(node_id)
    except ValueError as error:
        raise UsageError(f"node {error}") from None
    authority = open_authority(state_dir)
    cert_file = TlsFiles.of_state(state_dir).cert
    host, _ = split_address(address)
    listed = describe(cert_file.read_bytes()).hosts
    if check_host(host) not in listed:
        raise SecurityError(
            f"{cert_file}: is not for {host!r} but lists: {', '.join(listed)}; invite to one of these, or run "
            f"`tierline cloud init --host {host}` to add it"
        )
    if node_id == CLOUD:
        raise SecurityError(f"node id {node_id!r}: is the cloud's own; choose another")
    names = [check_host(name) for name in hosts]
    return InviteStore(state_dir, wall_s).create(node_id, address, authority.pem, hosts=names, minutes=minutes)


def _settle_authority(
    state_dir: Path, name: str, ca: tuple[Path, Path] | None
) -> tuple[Authority, _Paths, Literal["created", "kept", "yours"]]:
    folder = state_dir / "authority"
    known = _read_paths(state_dir)
    if known is None and ca is None:
        authority = create_authority(folder, name)
        paths = _Paths(str((folder / "ca.pem").resolve()), str((folder / "ca-key.pem").resolve()))
        _write_paths(state_dir, paths)
        return authority, paths, "created"
    if ca is None:
        assert known is not None
        return use_authority(Path(known.certificate), Path(known.key)), known, "kept"
    authority = use_authority(*ca)
    paths = _Paths(*(str(path.resolve()) for path in ca))
    if known is not None and use_authority(Path(known.certificate), Path(known.key)).pem != authority.pem:
        raise SecurityError(
            f"{_paths_file(state_dir)}: names another authority ({known.certificate}), which the nodes of this fleet "
            "trust; start with a fresh state_dir and let the nodes join again"
        )
    _write_paths(state_dir, paths)
    return authority, paths, "yours"


def _paths_file(state_dir: Path) -> Path:
    return state_dir / "authority" / "authority.json"


def _read_paths(state_dir: Path) -> _Paths | None:
    file = _paths_file(state_dir)
    if not file.exists():
        return None
    try:
        return msgspec.json.decode(file.read_bytes(), type=_Paths)
    except (OSError, msgspec.MsgspecError) as error:
        raise SecurityError(
            f"{file}: cannot be read ({error}); run `tierline cloud init` in a fresh state_dir"
        ) from error


def _write_paths(state_dir: Path, paths: _Paths) -> None:
    file = _paths_file(state_dir)
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = file.with_suffix(".new")
    fresh.write_bytes(msgspec.json.format(msgspec.json.encode(paths), indent=1))
    fresh.replace(file)
