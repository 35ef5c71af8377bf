"""Invitations: one pasteable line that lets one node, once and soon, ask the cloud for a certificate.

The line carries everything the node must know: where to ask, who it is, a token, and the authority to trust. The
cloud keeps a hash of the token only. Standard library and msgspec alone, since running servers ask for revocations.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import secrets
import sqlite3
import ssl
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from tierline.core.errors import SecurityError
from tierline.core.types import NodeId

PREFIX = "tl1."
VALID_MINUTES = 15.0
_END = "-----END CERTIFICATE-----"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS invitation (
  hash TEXT PRIMARY KEY, node_id TEXT NOT NULL, hosts TEXT NOT NULL, expires REAL NOT NULL, used REAL
);
CREATE TABLE IF NOT EXISTS certificate (
  serial TEXT PRIMARY KEY, node_id TEXT NOT NULL, hosts TEXT NOT NULL, issued REAL NOT NULL, expires REAL NOT NULL,
  revoked REAL
);
"""


class _Line(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What is inside the line; certificates are DER, which halves its length."""

    address: str
    node_id: str
    token: str
    ca: list[bytes]
    expires: float


@dataclass(frozen=True, slots=True)
class Invitation:
    """`address` is the enrolment port; `expires` is in seconds of the cloud's wall clock, which alone judges it."""

    address: str
    node_id: NodeId
    token: str
    ca_pem: bytes
    expires: float

    def encode(self) -> str:
        """The line to paste."""
        blocks = [block + _END for block in self.ca_pem.decode("ascii").split(_END)[:-1]]
        ca = [ssl.PEM_cert_to_DER_cert(block.strip()) for block in blocks]
        raw = msgspec.msgpack.encode(_Line(self.address, self.node_id, self.token, ca, self.expires))
        return PREFIX + base64.urlsafe_b64encode(zlib.crc32(raw).to_bytes(4, "big") + raw).decode().rstrip("=")

    @classmethod
    def decode(cls, line: str) -> Invitation:
        """Read a pasted line; spaces and line breaks that a terminal put in are ignored. Raises SecurityError."""
        text = "".join(line.split())
        if not text.startswith(PREFIX):
            raise SecurityError(
                f"not an invitation: the line must start with {PREFIX!r}; paste what `node invite` printed"
            )
        body = text[len(PREFIX) :]
        try:
            raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
            if zlib.crc32(raw[4:]).to_bytes(4, "big") != raw[:4]:
                raise ValueError("checksum")
            inner = msgspec.msgpack.decode(raw[4:], type=_Line)
        except (ValueError, binascii.Error, msgspec.MsgspecError) as error:
            raise SecurityError("the invitation was not copied whole; paste the line again") from error
        ca_pem = "".join(ssl.DER_cert_to_PEM_cert(der) for der in inner.ca).encode()
        return cls(inner.address, NodeId(inner.node_id), inner.token, ca_pem, inner.expires)


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """One line of `node ls`. `expires` is that of the certificate, or of the invitation while there is none."""

    node_id: NodeId
    state: Literal["invited", "enrolled", "expired", "revoked"]
    serial: str
    hosts: tuple[str, ...]
    expires: float


class InviteStore:
    """Invitations and issued certificates, in one SQLite file that several processes may use at once.

    `wall_s` gives seconds since 1970; it is compared with nothing but times that this store wrote itself.
    """

    def __init__(self, state_dir: Path, wall_s: Callable[[], float] = time.time) -> None:
        self._path = state_dir / "nodes.sqlite"
        self._wall_s = wall_s
        try:
            with self._transaction() as db:
                for statement in _SCHEMA.split(";"):
                    db.execute(statement)
            self._path.chmod(0o600)
        except (sqlite3.Error, OSError) as error:
            raise SecurityError(f"{self._path}: cannot be used ({error}); check state_dir") from error

    def create(
        self, node_id: str, address: str, ca_pem: bytes, *, hosts: Sequence[str] = (), minutes: float = VALID_MINUTES
    ) -> Invitation:
        """Invite one node; its earlier unused invitations end. `hosts`, if given, are all it may claim."""
        token = secrets.token_urlsafe(24)
        expires = self._wall_s() + 60.0 * minutes
        with self._transaction() as db:
            db.execute("DELETE FROM invitation WHERE node_id = ? AND used IS NULL", (node_id,))
            db.execute(
                "INSERT INTO invitation VALUES (?, ?, ?, ?, NULL)", (_hash(token), node_id, _join(hosts), expires)
            )
        return Invitation(address, NodeId(node_id), token, ca_pem, expires)

    def check(self, token: str, node_id: str, hosts: Sequence[str] = ()) -> None:
        """Raise SecurityError unless `redeem` would succeed now; changes nothing."""
        with self._transaction() as db:
            self._find(db, token, node_id, hosts)

    def redeem(self, token: str, node_id: str, hosts: Sequence[str] = ()) -> None:
        """Spend a token. Raises SecurityError: unknown, used or expired, or a host that is another node's."""
        with self._transaction() as db:
            digest = self._find(db, token, node_id, hosts)
            db.execute("UPDATE invitation SET used = ? WHERE hash = ?", (self._wall_s(), digest))

    def record(self, node_id: str, serial: str, hosts: Sequence[str], expires: float) -> None:
        """Note an issued certificate; the node's former ones are revoked, for their key may have been lost."""
        now = self._wall_s()
        with self._transaction() as db:
            db.execute("UPDATE certificate SET revoked = ? WHERE node_id = ? AND revoked IS NULL", (now, node_id))
            db.execute(
                "INSERT INTO certificate VALUES (?, ?, ?, ?, ?, NULL)", (serial, node_id, _join(hosts), now, expires)
            )

    def revoke(self, node_id: str) -> None:
        """End a node's certificates and open invitations. Raises SecurityError for a node never heard of."""
        with self._transaction() as db:
            db.execute(
                "UPDATE certificate SET revoked = ? WHERE node_id = ? AND revoked IS NULL", (self._wall_s(), node_id)
            )
            num_open = db.execute("DELETE FROM invitation WHERE node_id = ? AND used IS NULL", (node_id,)).rowcount
            known = db.execute("SELECT 1 FROM certificate WHERE node_id = ?", (node_id,)).fetchone()
        if not known and not num_open:
            raise SecurityError(f"node {node_id!r}: never invited here; `tierline node ls` lists the nodes")

    def revoked_serials(self) -> tuple[str, ...]:
        """Of certificates that would otherwise still be valid."""
        with self._transaction("DEFERRED") as db:
            rows = db.execute(
                "SELECT serial FROM certificate WHERE revoked IS NOT NULL AND expires > ?", (self._wall_s(),)
            ).fetchall()
        return tuple(serial for (serial,) in rows)

    def nodes(self) -> list[NodeRecord]:
        """Every node with a certificate or an open invitation, sorted by id."""
        now = self._wall_s()
        found: dict[str, NodeRecord] = {}
        with self._transaction("DEFERRED") as db:
            open_invitations = db.execute(
                "SELECT node_id, hosts, expires FROM invitation WHERE used IS NULL"
            ).fetchall()
            rows = db.execute(
                "SELECT node_id, serial, hosts, expires, revoked FROM certificate ORDER BY rowid"
            ).fetchall()
        for node, hosts, expires in open_invitations:
            found[node] = NodeRecord(
                NodeId(node), "invited" if expires > now else "expired", "", _split(hosts), expires
            )
        for node, serial, hosts, expires, revoked in rows:
            state: Literal["enrolled", "expired", "revoked"] = "enrolled" if expires > now else "expired"
            found[node] = NodeRecord(
                NodeId(node), state if revoked is None else "revoked", serial, _split(hosts), expires
            )
        return [found[node] for node in sorted(found)]

    def _find(self, db: sqlite3.Connection, token: str, node_id: str, hosts: Sequence[str]) -> str:
        """Hash of the open invitation. A token's state is told only to who holds the token."""
        presented = _hash(token)
        match: tuple[str, str, float, float | None] | None = None
        for row in db.execute("SELECT hash, hosts, expires, used FROM invitation WHERE node_id = ?", (node_id,)):
            if hmac.compare_digest(row[0], presented):
                match = row
        if match is None:
            raise SecurityError(f"node {node_id!r}: unknown invitation; run `tierline node invite {node_id}` again")
        digest, allowed, expires, used = match
        if used is not None:
            raise SecurityError(f"node {node_id!r}: the invitation was used before; run `tierline node invite` again")
        if expires <= self._wall_s():
            raise SecurityError(f"node {node_id!r}: the invitation has expired; run `tierline node invite` again")
        self._check_hosts(db, node_id, hosts, _split(allowed))
        return str(digest)

    def _check_hosts(self, db: sqlite3.Connection, node_id: str, hosts: Sequence[str], allowed: Sequence[str]) -> None:
        """Keep a node from taking a name under which another one is dialled."""
        taken: dict[str, str] = {}
        for node, listed in db.execute(
            "SELECT node_id, hosts FROM certificate WHERE revoked IS NULL AND node_id != ?", (node_id,)
        ):
            taken.update(dict.fromkeys(_split(listed), node))
        for host in hosts:
            if allowed and host not in allowed:
                raise SecurityError(f"node {node_id!r}: invited for {', '.join(allowed)}, not for host {host!r}")
            if not allowed and host in taken and not _shared(host):
                raise SecurityError(
                    f"node {node_id!r}: host {host!r} belongs to node {taken[host]!r}; to allow it run "
                    f"`tierline node invite {node_id} --host {host}`"
                )

    @contextlib.contextmanager
    def _transaction(self, kind: Literal["IMMEDIATE", "DEFERRED"] = "IMMEDIATE") -> Iterator[sqlite3.Connection]:
        """One connection per use, so that threads and processes need no agreement; all or nothing.

        IMMEDIATE keeps every other writer out between a look and the change that follows; DEFERRED is for looking only.
        """
        with contextlib.closing(sqlite3.connect(self._path, timeout=10.0, isolation_level=None)) as db:
            db.execute(f"BEGIN {kind}")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")


def _hash(token: str) -> str:
    """No salt or stretching: the token is 192 random bits."""
    return hashlib.sha256(token.encode()).hexdigest()


def _shared(host: str) -> bool:
    """Loopback means every machine itself, so it belongs to nobody."""
    return host in ("localhost", "::1") or host.startswith("127.")


def _join(hosts: Sequence[str]) -> str:
    return " ".join(hosts)


def _split(hosts: str) -> tuple[str, ...]:
    return tuple(hosts.split())
