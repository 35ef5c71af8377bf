"""Mutual TLS for gRPC from three PEM files, with errors that name the file or the name that is wrong.

Only the standard library looks into certificates here, so a running agent never loads `cryptography`. Files are tried
out in a TLS handshake in memory before gRPC sees them, because gRPC reports a bad one as an unreachable peer.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
import ssl
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from tierline.core.errors import ConfigError, SecurityError
from tierline.core.types import NodeId

NODE_URI = "tierline:node:"
"""Prefix of the URI SAN that carries a certificate's NodeId."""

INVITE_AGAIN = "run `tierline node invite` on the cloud and `tierline node join` here"

# OpenSSL verify codes (x509_vfy.h) that users meet.
_NOT_YET_VALID, _EXPIRED = 9, 10
_FOREIGN = frozenset({2, 7, 18, 19, 20, 21})


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of the trusted authority, of this node's certificate (chain) and of its key, all PEM."""

    ca: Path
    cert: Path
    key: Path

    @classmethod
    def in_folder(cls, folder: Path) -> TlsFiles:
        """The file names that `cloud init` and `node join` write."""
        return cls(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")

    @classmethod
    def of_state(cls, state_dir: Path) -> TlsFiles:
        """Where a node keeps its identity: `state_dir/pki`."""
        return cls.in_folder(state_dir / "pki")


@dataclass(frozen=True, slots=True)
class Identity:
    """What a certificate says. `expires` is in text, as OpenSSL prints it."""

    node_id: NodeId | None
    hosts: tuple[str, ...]
    expires: str


def server_credentials(files: TlsFiles, *, require_client: bool = True) -> grpc.ServerCredentials:
    """Mutual TLS; `require_client=False` is for enrolment alone, where the node has no certificate yet."""
    check_files(files)
    pair = (files.key.read_bytes(), files.cert.read_bytes())
    ca = files.ca.read_bytes() if require_client else None
    return grpc.ssl_server_credentials([pair], root_certificates=ca, require_client_auth=require_client)


def channel_credentials(files: TlsFiles) -> grpc.ChannelCredentials:
    """Mutual TLS seen from the node that dials."""
    check_files(files)
    return grpc.ssl_channel_credentials(files.ca.read_bytes(), files.key.read_bytes(), files.cert.read_bytes())


def peer_node_id(auth_context: Mapping[str, Iterable[bytes]]) -> NodeId | None:
    """NodeId proven by the peer's certificate (a service's `context.auth_context()`); None without exactly one."""
    names = [raw.decode("utf-8", "replace") for raw in auth_context.get("x509_subject_alternative_name", ())]
    return _node_id_among(names)


def peer_serial(auth_context: Mapping[str, Iterable[bytes]]) -> str | None:
    """Serial of the peer's certificate in hexadecimal, as the store of invitations records it; None on a plain link."""
    for pem in auth_context.get("x509_pem_cert", ()):
        return serial_of(pem)
    return None


def serial_of(cert_pem: bytes) -> str:
    """Serial of the first certificate in `cert_pem`, in hexadecimal."""
    der = ssl.PEM_cert_to_DER_cert(_first_certificate(cert_pem))
    at, _ = _der_item(der, 0)  # Certificate
    at, _ = _der_item(der, at)  # TBSCertificate
    if der[at] == 0xA0:  # optional version
        start, size = _der_item(der, at)
        at = start + size
    start, size = _der_item(der, at)
    return format(int.from_bytes(der[start : start + size], "big"), "x")


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port`, `[ipv6]:port` or `:port`. Raises ConfigError."""
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not port.isdigit() or int(port) > 65535 or (":" in host and not bracketed):
        raise ConfigError(f"address {address!r}: expected host:port or [ipv6]:port")
    return (host[1:-1] if bracketed else host), int(port)


def is_loopback(address: str) -> bool:
    """Whether only this machine can be meant; a name counts only if it is `localhost`, since others can be rebound."""
    if address.startswith("unix:"):
        return True
    host, _ = split_address(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_tls(address: str, tls: TlsFiles | None, insecure: bool) -> None:
    """Raise SecurityError where `address` leaves this machine without TLS and the user did not type `--insecure`."""
    if tls is None and not insecure and not is_loopback(address):
        raise SecurityError(
            f"{address}: no certificate, and this address is reachable from outside this machine; {INVITE_AGAIN} "
            "(`tierline cloud init` for the cloud itself), or type --insecure"
        )


def check_files(files: TlsFiles) -> Identity:
    """Prove that key, certificate and authority belong together and are valid today. Raises SecurityError."""
    for path in (files.ca, files.cert, files.key):
        _check_pem(path, private=path == files.key)
    ours, theirs = tls_context(server=True), tls_context(server=False)
    try:
        theirs.load_verify_locations(files.ca)
    except ssl.SSLError as error:
        raise SecurityError(f"{files.ca}: not a readable certificate; {INVITE_AGAIN}") from error
    load_pair(ours, files)
    try:
        peer = _handshake_in_memory(ours, theirs)
    except ssl.SSLCertVerificationError as error:
        raise SecurityError(
            f"{files.cert}: {verdict_of(error, f'the authority in {files.ca}')}; {INVITE_AGAIN}"
        ) from error
    except ssl.SSLError as error:
        raise SecurityError(f"{files.cert}: unusable for TLS ({error.reason}); {INVITE_AGAIN}") from error
    return identity_of(peer)


def write_private(path: Path, raw: bytes) -> None:
    """Create a file that only its owner may read, from its first byte on. Raises SecurityError if it exists."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise SecurityError(f"{path}: cannot be created ({error.strerror})") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(raw)


def write_identity(state_dir: Path, ca_pem: bytes, cert_pem: bytes, key_pem: bytes) -> TlsFiles:
    """Put `ca.pem cert.pem key.pem` into `state_dir/pki`, all three or none; a former identity is replaced.

    The files are written and checked in a folder beside it, which then takes its place. Raises SecurityError.
    """
    target = state_dir / "pki"
    try:
        fresh = Path(tempfile.mkdtemp(prefix=".pki-", dir=state_dir))
    except OSError as error:
        raise SecurityError(f"{state_dir}: cannot be written ({error.strerror}); choose another state_dir") from error
    try:
        files = TlsFiles.in_folder(fresh)
        write_private(files.key, key_pem)
        files.cert.write_bytes(cert_pem)
        files.ca.write_bytes(ca_pem)
        check_files(files)
        former: Path | None = None
        if target.exists():
            former = Path(tempfile.mkdtemp(prefix=".pki-", dir=state_dir))
            target.rename(former / "pki")
        fresh.rename(target)
        if former is not None:
            shutil.rmtree(former)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return TlsFiles.in_folder(target)


def verdict_of(error: ssl.SSLCertVerificationError, authority: str) -> str:
    """What is wrong with a certificate, to be said after its name."""
    if error.verify_code == _EXPIRED:
        return "has expired"
    if error.verify_code == _NOT_YET_VALID:
        return "is not valid yet; check this machine's clock"
    if error.verify_code in _FOREIGN:
        return f"was not signed by {authority}"
    return f"was refused ({error.verify_message})"


def _check_pem(path: Path, private: bool) -> None:
    what = "private key" if private else "certificate"
    try:
        text = path.read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not PEM text"
        raise SecurityError(f"{path}: {what} cannot be read ({reason}); {INVITE_AGAIN}") from error
    headers = [line for line in text.splitlines() if line.startswith("-----BEGIN ")]
    if private and "ENCRYPTED" in text:
        raise SecurityError(f"{path}: the key is protected by a passphrase; give a key without, in a file of mode 0600")
    if not any(line.endswith("PRIVATE KEY-----" if private else "BEGIN CERTIFICATE-----") for line in headers):
        raise SecurityError(f"{path}: holds no PEM {what}; {INVITE_AGAIN}")


def load_pair(context: ssl.SSLContext, files: TlsFiles) -> None:
    """Raises SecurityError where certificate and key do not fit."""
    try:
        context.load_cert_chain(files.cert, files.key)
    except ssl.SSLError as error:
        if error.reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"):
            message = f"{files.key}: is not the key of {files.cert}"
        else:
            message = f"{files.cert} and {files.key}: not a readable certificate and key ({error.reason})"
        raise SecurityError(f"{message}; {INVITE_AGAIN}") from error


def tls_context(server: bool) -> ssl.SSLContext:
    """As gRPC's own, without a check of host names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    return context


def identity_of(peer: Mapping[str, Any] | None) -> Identity:
    """From `SSLObject.getpeercert()`, which is never empty on a verified connection."""
    names = (peer or {}).get("subjectAltName", ())
    hosts = tuple(value for kind, value in names if kind in ("DNS", "IP Address"))
    return Identity(_node_id_among([value for kind, value in names if kind == "URI"]), hosts, (peer or {})["notAfter"])


def _node_id_among(names: list[str]) -> NodeId | None:
    found = [name[len(NODE_URI) :] for name in names if name.startswith(NODE_URI)]
    return NodeId(found[0]) if len(found) == 1 and found[0] else None


def _handshake_in_memory(server: ssl.SSLContext, client: ssl.SSLContext) -> Mapping[str, Any] | None:
    """The server's certificate as the client verified it. Raises ssl.SSLError."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [client.wrap_bio(down, up, server_side=False), server.wrap_bio(up, down, server_side=True)]
    for _ in range(8):  # a handshake takes at most two round trips
        for side in sides:
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    return sides[0].getpeercert()


def _first_certificate(pem: bytes) -> str:
    end = "-----END CERTIFICATE-----"
    head, found, _ = pem.decode("ascii").partition(end)
    return head[head.find("-----BEGIN CERTIFICATE-----") :] + found


def _der_item(der: bytes, at: int) -> tuple[int, int]:
    """Where the content of the DER item at `at` starts, and its length in bytes."""
    size = der[at + 1]
    if size < 0x80:
        return at + 2, size
    num = size & 0x7F
    return at + 2 + num, int.from_bytes(der[at + 2 : at + 2 + num], "big")
