"""Mutual TLS over real sockets: who is let in, who is not, and whether the reason is told."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from tierline.core import pki
from tierline.core.errors import ConfigError, LinkUnavailable, SecurityError, TierlineError
from tierline.core.link import tls
from tierline.core.link.tls import TlsFiles
from tierline.core.link.tls_failure import explain_failure


class WhoAmI(grpc.GenericRpcHandler):
    """Answers every unary call with the NodeId and serial that the caller's certificate proves."""

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        async def answer(request: bytes, context: Any) -> bytes:
            seen: Mapping[str, Any] = context.auth_context()
            return f"{tls.peer_node_id(seen)} {tls.peer_serial(seen)}".encode()

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Identities by folder: `server` (127.0.0.1, ::1 and localhost), `named` (example.org only), `node`, `foreign`."""
    folder = tmp_path_factory.mktemp("fleet")
    ours, theirs = pki.create_authority(folder / "ours", "ours"), pki.create_authority(folder / "theirs", "theirs")
    for name, ca, hosts, days in (
        ("server", ours, ["127.0.0.1", "::1", "localhost"], 1),
        ("named", ours, ["example.org", "10.1.2.3"], 1),
        ("node", ours, ["orin-1.local"], 1),
        ("expired", ours, ["127.0.0.1"], -1),
        ("foreign", theirs, ["127.0.0.1"], 1),
    ):
        cert, key = pki.issue_server(ca, name, hosts, days)
        (folder / name).mkdir()
        for file, raw in (("ca.pem", ca.pem), ("cert.pem", cert), ("key.pem", key)):
            (folder / name / file).write_bytes(raw)
    return folder


@asynccontextmanager
async def serving(files: TlsFiles | None, host: str = "127.0.0.1") -> AsyncIterator[int]:
    server = grpc.aio.server(handlers=[WhoAmI()])
    if files is None:
        port = server.add_insecure_port(f"{host}:0")
    else:
        port = server.add_secure_port(f"{host}:0", tls.server_credentials(files))
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def call(address: str, credentials: grpc.ChannelCredentials) -> str:
    async with grpc.aio.secure_channel(address, credentials) as channel:
        raw: bytes = await channel.unary_unary("/test/WhoAmI")(b"", timeout=10)
        return raw.decode()


async def failure(files: TlsFiles | None, dial: TlsFiles, address: str | None = None) -> TierlineError:
    """Prove that the call fails; return the explanation."""
    async with serving(files) as port:
        target = address.format(port=port) if address else f"127.0.0.1:{port}"
        credentials = grpc.ssl_channel_credentials(dial.ca.read_bytes(), dial.key.read_bytes(), dial.cert.read_bytes())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(target, credentials)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        return await explain_failure(target, dial.ca.read_bytes(), dial)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_mutual_tls_round_trip_proves_the_node(fleet: Path, host: str) -> None:
    if host == "[::1]" and not _has_ipv6():
        pytest.skip("this machine has no IPv6 loopback")

    async def scenario() -> str:
        async with serving(TlsFiles.in_folder(fleet / "server"), host) as port:
            return await call(f"{host}:{port}", tls.channel_credentials(TlsFiles.in_folder(fleet / "node")))

    told = pki.describe((fleet / "node" / "cert.pem").read_bytes())
    assert asyncio.run(scenario()) == f"node {told.serial}"


def test_foreign_client_is_refused_and_told(fleet: Path) -> None:
    dial = TlsFiles(fleet / "ours" / "ca.pem", fleet / "foreign" / "cert.pem", fleet / "foreign" / "key.pem")
    error = asyncio.run(failure(TlsFiles.in_folder(fleet / "server"), dial))
    assert isinstance(error, SecurityError)
    assert "refused this node's certificate" in str(error)
    assert "foreign/cert.pem" in str(error)


def test_client_without_certificate_is_refused(fleet: Path) -> None:
    async def scenario() -> TierlineError:
        ca = (fleet / "ours" / "ca.pem").read_bytes()
        async with serving(TlsFiles.in_folder(fleet / "server")) as port:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(ca))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            return await explain_failure(f"127.0.0.1:{port}", ca, None)

    error = asyncio.run(scenario())
    assert isinstance(error, SecurityError)
    assert "demands a certificate and this node has none" in str(error)


def test_sound_connection_is_not_blamed_on_tls(fleet: Path) -> None:
    async def scenario() -> TierlineError:
        node = TlsFiles.in_folder(fleet / "node")
        async with serving(TlsFiles.in_folder(fleet / "server")) as port:
            return await explain_failure(f"127.0.0.1:{port}", node.ca.read_bytes(), node)

    error = asyncio.run(scenario())
    assert isinstance(error, LinkUnavailable)
    assert "TLS is in order" in str(error)


def test_unreadable_authority_is_told() -> None:
    for ca_pem in (b"", b"hello", b"\xff"):
        error = asyncio.run(explain_failure("127.0.0.1:1", ca_pem, None))
        assert isinstance(error, SecurityError)
        assert "the authority to trust" in str(error)


def test_foreign_server_is_refused_and_told(fleet: Path) -> None:
    error = asyncio.run(failure(TlsFiles.in_folder(fleet / "foreign"), TlsFiles.in_folder(fleet / "node")))
    assert isinstance(error, SecurityError)
    assert "not signed by the authority trusted here" in str(error)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_wrong_host_name_tells_what_the_certificate_lists(fleet: Path, host: str) -> None:
    named, node = TlsFiles.in_folder(fleet / "named"), TlsFiles.in_folder(fleet / "node")
    error = asyncio.run(failure(named, node, host + ":{port}"))
    assert isinstance(error, SecurityError)
    assert f"not for {host!r} but lists: example.org, 10.1.2.3;" in str(error)
    assert f"--host {host}" in str(error)


def test_tls_to_a_plain_port_is_told(fleet: Path) -> None:
    error = asyncio.run(failure(None, TlsFiles.in_folder(fleet / "node")))
    assert isinstance(error, SecurityError)
    assert "does not speak TLS" in str(error)


def test_plain_connection_to_a_tls_port_fails(fleet: Path) -> None:
    async def scenario() -> grpc.StatusCode:
        async with (
            serving(TlsFiles.in_folder(fleet / "server")) as port,
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/test/WhoAmI")(b"", timeout=10)
            return caught.value.code()

    assert asyncio.run(scenario()) is grpc.StatusCode.UNAVAILABLE


def test_absent_server_is_no_security_matter(fleet: Path) -> None:
    async def scenario() -> TierlineError:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        return await explain_failure(f"127.0.0.1:{port}", (fleet / "ours" / "ca.pem").read_bytes(), None)

    assert isinstance(asyncio.run(scenario()), LinkUnavailable)


def test_silent_server_is_given_up(fleet: Path) -> None:
    async def scenario() -> TierlineError:
        async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        server = await asyncio.start_server(hold, "127.0.0.1", 0)
        async with server:
            address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            return await explain_failure(address, (fleet / "ours" / "ca.pem").read_bytes(), None, timeout_s=0.2)

    assert "timed out" in str(asyncio.run(scenario()))


def test_files_are_checked_before_grpc_sees_them(fleet: Path, tmp_path: Path) -> None:
    node, foreign = TlsFiles.in_folder(fleet / "node"), TlsFiles.in_folder(fleet / "foreign")
    identity = tls.check_files(node)
    assert (identity.node_id, identity.hosts) == ("node", ("orin-1.local",))
    text = tmp_path / "text.pem"
    text.write_text("hello")
    binary = tmp_path / "binary.pem"
    binary.write_bytes(b"\x80\xff")
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    locked = tmp_path / "locked.pem"
    locked.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")
    for files, message in (
        (TlsFiles(tmp_path / "absent.pem", node.cert, node.key), r"absent\.pem: certificate cannot be read"),
        (TlsFiles(node.ca, binary, node.key), r"binary\.pem: certificate cannot be read \(not PEM text\)"),
        (TlsFiles(node.ca, text, node.key), r"text\.pem: holds no PEM certificate"),
        (TlsFiles(node.ca, node.cert, node.cert), r"cert\.pem: holds no PEM private key"),
        (TlsFiles(broken, node.cert, node.key), r"broken\.pem: not a readable certificate"),
        (TlsFiles(node.ca, broken, node.key), r"broken\.pem and .*key\.pem: not a readable"),
        (TlsFiles(node.ca, node.cert, locked), r"locked\.pem: the key is protected by a passphrase"),
        (TlsFiles(node.ca, node.cert, foreign.key), r"foreign/key\.pem: is not the key of .*node/cert\.pem"),
        (TlsFiles(foreign.ca, node.cert, node.key), r"node/cert\.pem: was not signed by .*foreign/ca\.pem"),
        (TlsFiles.in_folder(fleet / "expired"), r"expired/cert\.pem: has expired; run `tierline node invite`"),
    ):
        for build in (tls.server_credentials, tls.channel_credentials):
            with pytest.raises(SecurityError, match=message):
                build(files)


def test_beyond_loopback_tls_is_required(fleet: Path) -> None:
    for address in ("127.0.0.1:1", "127.8.9.1:1", "localhost:1", "[::1]:1", "unix:/tmp/socket"):
        tls.require_tls(address, None, insecure=False)
    for address in ("0.0.0.0:1", ":1", "[::]:1", "10.0.0.7:1", "cloud.example.org:1", "localhost.example.org:1"):
        with pytest.raises(SecurityError, match="--insecure"):
            tls.require_tls(address, None, insecure=False)
        tls.require_tls(address, None, insecure=True)
        tls.require_tls(address, TlsFiles.in_folder(fleet / "node"), insecure=False)


@pytest.mark.parametrize("address", ["host", "host:", "host:http", "::1:80", "host:70000"])
def test_bad_addresses_are_named(address: str) -> None:
    with pytest.raises(ConfigError, match="expected host:port"):
        tls.split_address(address)


def test_node_id_needs_exactly_one_name() -> None:
    def seen(*names: bytes) -> Mapping[str, list[bytes]]:
        return {"x509_subject_alternative_name": list(names)}

    assert tls.peer_node_id(seen(b"10.0.0.7", b"tierline:node:orin-1")) == "orin-1"
    assert tls.peer_node_id(seen(b"orin-1")) is None
    assert tls.peer_node_id(seen(b"tierline:node:a", b"tierline:node:b")) is None
    assert tls.peer_node_id(seen(b"tierline:node:")) is None
    assert tls.peer_node_id({}) is None
    assert tls.peer_serial({}) is None


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False
