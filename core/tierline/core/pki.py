"""Certificates: an authority, node and server certificates, signing requests. The one file that needs `cryptography`.

Every certificate carries its NodeId as CN and as URI SAN `tierline:node:<id>`, and is good for both ends of a link,
since an edge node is a client of its parent and a server to its children. Keys are EC P-256.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tierline.core.errors import SecurityError
from tierline.core.link.tls import NODE_URI, write_private
from tierline.core.types import NodeId

AUTHORITY_DAYS = 3650
NODE_DAYS = 365
SKEW = datetime.timedelta(hours=1)
"""How far back a certificate starts, for nodes whose clocks are behind."""

AuthorityKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
NodeKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey

_NODE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_HOST = re.compile(r"(?!.*\.\.)[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate and key that sign others."""

    certificate: x509.Certificate
    key: AuthorityKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)


@dataclass(frozen=True, slots=True)
class Description:
    """What a certificate says, for people. `expires` is UTC."""

    subject: str
    node_id: NodeId | None
    hosts: tuple[str, ...]
    serial: str
    expires: datetime.datetime


def create_authority(folder: Path, name: str, *, days: int = AUTHORITY_DAYS) -> Authority:
    """Make `ca.pem` and `ca-key.pem` (mode 0600) in `folder`. Raises SecurityError rather than overwrite either."""
    cert_path, key_path = folder / "ca.pem", folder / "ca-key.pem"
    for path in (cert_path, key_path):
        if path.exists():
            raise SecurityError(
                f"{path}: exists already; every node of the fleet trusts this authority, so it is not overwritten: "
                "keep it, or move it away and let all nodes join again"
            )
    if not 1 <= len(name) <= 64:
        raise SecurityError(f"authority name {name!r}: must have 1 to 64 characters")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        _builder(subject, subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_private(key_path, _key_pem(key))
    cert_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return Authority(certificate, key)


def use_authority(cert_path: Path, key_path: Path) -> Authority:
    """An authority from files, the user's own or ours. Raises SecurityError naming the file that is wrong."""
    certificate = _certificate(_read(cert_path), str(cert_path))
    try:
        key = serialization.load_pem_private_key(_read(key_path), password=None)
    except TypeError as error:
        raise SecurityError(f"{key_path}: the key is protected by a passphrase; give a key without") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SecurityError(f"{key_path}: not a PEM private key") from error
    if not isinstance(key, AuthorityKey):
        raise SecurityError(f"{key_path}: an authority's key must be EC, RSA or Ed25519")
    if key.public_key() != certificate.public_key():
        raise SecurityError(f"{key_path}: is not the key of {cert_path}; give the pair that belongs together")
    try:
        is_authority = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        is_authority = False
    if not is_authority:
        raise SecurityError(f"{cert_path}: may not sign others (no CA:TRUE); give an authority's certificate")
    if certificate.not_valid_after_utc <= _now():
        raise SecurityError(f"{cert_path}: expired on {certificate.not_valid_after_utc:%Y-%m-%d}; give a valid one")
    return Authority(certificate, key)


def new_key_and_csr(node_id: str, hosts: Sequence[str] = ()) -> tuple[bytes, bytes]:
    """A fresh key and the request to certify it, both PEM. The key should never leave the node it was made on."""
    key = ec.generate_private_key(ec.SECP256R1())
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(_subject(node_id))
        .add_extension(_alternative_names(node_id, hosts), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _key_pem(key), csr.public_bytes(serialization.Encoding.PEM)


def issue_node(ca: Authority, csr_pem: bytes, node_id: str, days: int = NODE_DAYS, hosts: Sequence[str] = ()) -> bytes:
    """Certify a node's key, PEM. Only the public key is taken from the request; id and hosts are the caller's word.

    `hosts` are the names and addresses under which the node listens; none for a node without children.
    """
    where = f"signing request of node {node_id!r}"
    try:
        csr = x509.load_pem_x509_csr(csr_pem)
        key, signed = csr.public_key(), csr.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise SecurityError(f"{where}: not a PEM request; join again") from error
    if not signed:
        raise SecurityError(f"{where}: its signature is wrong; join again")
    weak = isinstance(key, rsa.RSAPublicKey) and key.key_size < 2048
    if weak or not isinstance(key, NodeKey):
        raise SecurityError(f"{where}: key must be EC, Ed25519 or RSA of at least 2048 bits")
    return _issue(ca, key, node_id, hosts, days)


def issue_server(ca: Authority, node_id: str, hosts: Sequence[str], days: int = NODE_DAYS) -> tuple[bytes, bytes]:
    """Certificate and fresh key, both PEM, for a server reached under `hosts` (names and IP addresses)."""
    if not hosts:
        raise SecurityError(f"node {node_id!r}: a server needs at least one host name or IP address (--host)")
    key = ec.generate_private_key(ec.SECP256R1())
    return _issue(ca, key.public_key(), node_id, hosts, days), _key_pem(key)


def fingerprint(cert_pem: bytes) -> str:
    """SHA-256 of the certificate in hexadecimal: what two people compare by voice."""
    return _certificate(cert_pem, "certificate").fingerprint(hashes.SHA256()).hex()


def describe(cert_pem: bytes) -> Description:
    """Subject, names and expiry. Raises SecurityError when it is no certificate."""
    certificate = _certificate(cert_pem, "certificate")
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    uris = [u.removeprefix(NODE_URI) for u in names.get_values_for_type(x509.UniformResourceIdentifier)]
    hosts = [str(name.value) for name in names if isinstance(name, x509.DNSName | x509.IPAddress)]
    return Description(
        subject=certificate.subject.rfc4514_string(),
        node_id=NodeId(uris[0]) if len(uris) == 1 else None,
        hosts=tuple(hosts),
        serial=format(certificate.serial_number, "x"),
        expires=certificate.not_valid_after_utc,
    )


def check_host(host: str) -> str:
    """A host name or IP address in the form certificates carry. Raises SecurityError."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _HOST.fullmatch(host):
        raise SecurityError(f"host {host!r}: expected a name or an IP address, without port, scheme or wildcard")
    return host.lower()


def _issue(ca: Authority, key: NodeKey, node_id: str, hosts: Sequence[str], days: int) -> bytes:
    certificate = (
        _builder(_subject(node_id), ca.certificate.subject, key, days, ca.certificate)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(_alternative_names(node_id, hosts), critical=False)
    )
    digest = None if isinstance(ca.key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return certificate.sign(ca.key, digest).public_bytes(serialization.Encoding.PEM)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: NodeKey, days: int, by: x509.Certificate | None = None
) -> x509.CertificateBuilder:
    start, end = _now() - SKEW, _now() + datetime.timedelta(days=days)
    signer = key
    if by is not None:
        end = min(end, by.not_valid_after_utc)
        signer = by.public_key()  # type: ignore[assignment]  # checked when the authority was opened
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(start, end - SKEW))
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
    )


def _subject(node_id: str) -> x509.Name:
    if not _NODE_ID.fullmatch(node_id):
        raise SecurityError(
            f"node id {node_id!r}: at most 63 letters, digits, '.', '_' and '-', the first alphanumeric"
        )
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node_id)])


def _alternative_names(node_id: str, hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(NODE_URI + node_id)]
    for host in dict.fromkeys(map(check_host, hosts)):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return x509.SubjectAlternativeName(names)


def _key_usage(authority: bool) -> x509.KeyUsage:
    nothing = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return x509.KeyUsage(digital_signature=not authority, key_cert_sign=authority, crl_sign=authority, **nothing)


def _certificate(pem: bytes, where: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise SecurityError(f"{where}: not a PEM certificate") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SecurityError(f"{path}: cannot be read ({error.strerror})") from error


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)
