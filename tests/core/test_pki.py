"""Certificates say what they should, keys stay private, and every wrong file is named."""

from __future__ import annotations

import datetime
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tierline.core import pki
from tierline.core.errors import SecurityError
from tierline.core.link.tls import TlsFiles, check_files, serial_of, write_identity


@pytest.fixture
def authority(tmp_path: Path) -> pki.Authority:
    return pki.create_authority(tmp_path / "authority", "test fleet")


def test_authority_key_is_private_and_never_overwritten(tmp_path: Path) -> None:
    pki.create_authority(tmp_path, "gate")
    before = (tmp_path / "ca-key.pem").read_bytes()
    assert stat.S_IMODE((tmp_path / "ca-key.pem").stat().st_mode) == 0o600
    with pytest.raises(SecurityError, match=r"ca\.pem: exists already"):
        pki.create_authority(tmp_path, "gate")
    (tmp_path / "ca.pem").unlink()
    with pytest.raises(SecurityError, match=r"ca-key\.pem: exists already"):
        pki.create_authority(tmp_path, "gate")
    assert (tmp_path / "ca-key.pem").read_bytes() == before


def test_node_certificate_says_who_and_where(authority: pki.Authority) -> None:
    _, csr = pki.new_key_and_csr("orin-1")
    pem = pki.issue_node(authority, csr, "orin-1", 30, ["Edge.Example.org", "10.0.0.7", "::0001"])
    told = pki.describe(pem)
    assert told.node_id == "orin-1"
    assert told.subject == "CN=orin-1"
    assert told.hosts == ("edge.example.org", "10.0.0.7", "::1")
    assert told.serial == serial_of(pem)
    left = told.expires - datetime.datetime.now(datetime.timezone.utc)
    assert datetime.timedelta(days=29) < left <= datetime.timedelta(days=30)
    usage = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}


def test_serial_survives_der_of_any_length(authority: pki.Authority) -> None:
    for _ in range(20):  # random serials: some need a leading zero byte in DER
        cert, _key = pki.issue_server(authority, "cloud", ["localhost"])
        assert serial_of(cert) == pki.describe(cert).serial


def test_request_cannot_choose_its_identity(authority: pki.Authority) -> None:
    _, csr = pki.new_key_and_csr("cloud", ["cloud.example.org"])
    told = pki.describe(pki.issue_node(authority, csr, "orin-1", 1))
    assert (told.node_id, told.hosts) == ("orin-1", ())


def test_certificate_never_outlives_its_authority(tmp_path: Path) -> None:
    short = pki.create_authority(tmp_path, "short", days=5)
    cert, _ = pki.issue_server(short, "cloud", ["localhost"], days=365)
    assert pki.describe(cert).expires == short.certificate.not_valid_after_utc


def test_fingerprints_tell_authorities_apart(tmp_path: Path) -> None:
    one, two = pki.create_authority(tmp_path / "1", "same"), pki.create_authority(tmp_path / "2", "same")
    assert pki.fingerprint(one.pem) != pki.fingerprint(two.pem)
    assert pki.fingerprint(one.pem) == one.certificate.fingerprint(hashes.SHA256()).hex()


@pytest.mark.parametrize("node_id", ["", "a" * 64, "a b", "-a", "a/b", "tierline:node:x", "ä"])
def test_bad_node_ids_are_refused(node_id: str) -> None:
    with pytest.raises(SecurityError, match="node id"):
        pki.new_key_and_csr(node_id)


@pytest.mark.parametrize("host", ["", "*.example.org", "a:7443", "https://a", "a..b", "-a", "a b"])
def test_bad_hosts_are_refused(authority: pki.Authority, host: str) -> None:
    with pytest.raises(SecurityError, match="host"):
        pki.issue_server(authority, "cloud", [host])


def test_server_needs_a_host(authority: pki.Authority) -> None:
    with pytest.raises(SecurityError, match="--host"):
        pki.issue_server(authority, "cloud", [])


def test_bad_requests_are_refused(authority: pki.Authority) -> None:
    with pytest.raises(SecurityError, match="not a PEM request"):
        pki.issue_node(authority, b"hello", "orin-1", 1)
    _, csr = pki.new_key_and_csr("orin-1")
    der = bytearray(x509.load_pem_x509_csr(csr).public_bytes(serialization.Encoding.DER))
    der[der.index(b"orin-1")] ^= 1  # the signature no longer covers the content
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(SecurityError, match="signature is wrong"):
        pki.issue_node(authority, forged, "orin-1", 1)
    weak = rsa.generate_private_key(65537, 1024)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "orin-1")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(weak, hashes.SHA256())
    with pytest.raises(SecurityError, match="2048"):
        pki.issue_node(authority, request.public_bytes(serialization.Encoding.PEM), "orin-1", 1)


def test_own_authority_is_checked_file_by_file(tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    pki.create_authority(one, "one")
    pki.create_authority(two, "two")
    assert pki.use_authority(one / "ca.pem", one / "ca-key.pem").pem == (one / "ca.pem").read_bytes()
    with pytest.raises(SecurityError, match=r"2/ca-key\.pem: is not the key of .*1/ca\.pem"):
        pki.use_authority(one / "ca.pem", two / "ca-key.pem")
    with pytest.raises(SecurityError, match=r"absent\.pem: cannot be read"):
        pki.use_authority(tmp_path / "absent.pem", one / "ca-key.pem")
    with pytest.raises(SecurityError, match="not a PEM certificate"):
        pki.use_authority(one / "ca-key.pem", one / "ca-key.pem")
    with pytest.raises(SecurityError, match="not a PEM private key"):
        pki.use_authority(one / "ca.pem", one / "ca.pem")


def test_leaf_expired_and_locked_authorities_are_refused(tmp_path: Path) -> None:
    authority = pki.create_authority(tmp_path / "ca", "one")
    cert, key = pki.issue_server(authority, "cloud", ["localhost"])
    leaf = tmp_path / "leaf.pem"
    leaf_key = tmp_path / "leaf-key.pem"
    leaf.write_bytes(cert)
    leaf_key.write_bytes(key)
    with pytest.raises(SecurityError, match="may not sign others"):
        pki.use_authority(leaf, leaf_key)
    pki.create_authority(tmp_path / "old", "old", days=-1)
    with pytest.raises(SecurityError, match="expired on"):
        pki.use_authority(tmp_path / "old" / "ca.pem", tmp_path / "old" / "ca-key.pem")
    locked = tmp_path / "locked.pem"
    locked.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(SecurityError, match="passphrase"):
        pki.use_authority(tmp_path / "ca" / "ca.pem", locked)


def test_identity_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    authority = pki.create_authority(tmp_path / "ca", "one")
    cert, key = pki.issue_server(authority, "cloud", ["localhost"])
    files = write_identity(tmp_path, authority.pem, cert, key)
    assert files == TlsFiles.of_state(tmp_path)
    assert stat.S_IMODE(files.key.stat().st_mode) == 0o600
    other_cert, other_key = pki.issue_server(authority, "cloud", ["localhost"])
    with pytest.raises(SecurityError, match="is not the key of"):
        write_identity(tmp_path, authority.pem, other_cert, key)
    assert files.cert.read_bytes() == cert
    write_identity(tmp_path, authority.pem, other_cert, other_key)
    assert files.cert.read_bytes() == other_cert
    check_files(files)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ca", "pki"]


def test_agents_side_never_loads_cryptography() -> None:
    script = (
        "import sys, tierline.core.link.tls, tierline.core.invite, tierline.core.link.enrol; "
        "sys.exit('cryptography' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0
