"""From `cloud init` to a node's first authenticated call, over real sockets, and every way it must not go."""

from __future__ import annotations

import asyncio
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

from tierline.cloud.enrol import EnrolmentService, RateLimit, start_enrolment
from tierline.cloud.init import init_cloud, invite, open_authority
from tierline.core.clock import ManualClock
from tierline.core.errors import AdmissionRefused, PeerRejected, PortInUse, SecurityError
from tierline.core.invite import Invitation, InviteStore
from tierline.core.link.enrol import claim
from tierline.core.link.tls import (
    TlsFiles,
    channel_credentials,
    check_files,
    peer_node_id,
    peer_serial,
    server_credentials,
)
from tierline.core.pki import create_authority, describe, new_key_and_csr
from tierline.edge.join import join


class Wall:
    """A wall clock that tests turn by hand."""

    def __init__(self) -> None:
        self.s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.s


class Cloud:
    """A cloud that enrols nodes on its own thread and loop, as it would in its own process."""

    def __init__(self, state_dir: Path, hosts: tuple[str, ...] = ("127.0.0.1", "localhost")) -> None:
        self.state_dir = state_dir
        self.wall = Wall()
        self.clock = ManualClock()
        self.report = init_cloud(state_dir, "gate-7", hosts)
        self.store = InviteStore(state_dir, self.wall)
        self.port = 0
        self.host = "127.0.0.1"

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def invite(self, node_id: str, *hosts: str) -> str:
        return invite(self.state_dir, node_id, self.address, hosts=hosts, wall_s=self.wall).encode()

    @contextmanager
    def running(self) -> Iterator[Cloud]:
        ready, loop = threading.Event(), asyncio.new_event_loop()
        stop = asyncio.Event()

        async def serve() -> None:
            service = EnrolmentService(self.store, open_authority(self.state_dir), limit=RateLimit(self.clock, burst=5))
            server, self.port = await start_enrolment("127.0.0.1:0", TlsFiles.of_state(self.state_dir), service)
            ready.set()
            await stop.wait()
            await server.stop(None)

        def run() -> None:
            loop.run_until_complete(serve())
            loop.close()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            assert ready.wait(20)
            yield self
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(20)


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    with Cloud(tmp_path / "cloud").running() as running:
        yield running


def test_node_joins_and_is_known_by_its_certificate(cloud: Cloud, tmp_path: Path) -> None:
    node = tmp_path / "node"
    report = join(cloud.invite("orin-1"), node, ["Orin-1.local", "10.0.0.7"])
    assert (report.node_id, report.hosts) == ("orin-1", ("orin-1.local", "10.0.0.7"))
    assert report.fingerprint == cloud.report.fingerprint
    assert sorted(p.name for p in (node / "pki").iterdir()) == ["ca.pem", "cert.pem", "key.pem"]
    assert stat.S_IMODE(report.files.key.stat().st_mode) == 0o600
    assert check_files(report.files).node_id == "orin-1"
    assert [(n.node_id, n.state, n.hosts) for n in cloud.store.nodes() if n.node_id != "cloud"] == [
        ("orin-1", "enrolled", ("orin-1.local", "10.0.0.7"))
    ]


def test_joined_node_calls_the_cloud_until_it_is_revoked(cloud: Cloud, tmp_path: Path) -> None:
    files = join(cloud.invite("orin-1"), tmp_path / "node").files

    class Door(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
            async def answer(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
                seen = context.auth_context()
                node = peer_node_id(seen)
                if node is None or peer_serial(seen) in cloud.store.revoked_serials():
                    await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"node {node!r} was revoked")
                return str(node).encode()

            return grpc.unary_unary_rpc_method_handler(answer)

    async def scenario() -> None:
        server = grpc.aio.server(handlers=[Door()])
        port = server.add_secure_port("127.0.0.1:0", server_credentials(TlsFiles.of_state(cloud.state_dir)))
        await server.start()
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", channel_credentials(files)) as channel:
            knock = channel.unary_unary("/door/Knock")
            assert await knock(b"", timeout=10) == b"orin-1"
            cloud.store.revoke("orin-1")
            with pytest.raises(grpc.aio.AioRpcError, match="revoked"):
                await knock(b"", timeout=10)
        await server.stop(None)

    asyncio.run(scenario())


def test_token_is_not_taken_twice(cloud: Cloud, tmp_path: Path) -> None:
    line = cloud.invite("orin-1")
    join(line, tmp_path / "node")
    before = (tmp_path / "node" / "pki" / "cert.pem").read_bytes()
    with pytest.raises(SecurityError, match="used before"):
        join(line, tmp_path / "node")
    assert (tmp_path / "node" / "pki" / "cert.pem").read_bytes() == before
    assert [p.name for p in (tmp_path / "node").iterdir()] == ["pki"]


def test_expired_token_is_refused(cloud: Cloud, tmp_path: Path) -> None:
    line = cloud.invite("orin-1")
    cloud.wall.s += 15 * 60
    with pytest.raises(SecurityError, match="expired"):
        join(line, tmp_path / "node")


def test_guessed_token_and_revoked_invitation_look_alike(cloud: Cloud, tmp_path: Path) -> None:
    line = cloud.invite("orin-1")
    true = Invitation.decode(line)
    guess = Invitation(true.address, true.node_id, "guess", true.ca_pem, true.expires)
    with pytest.raises(SecurityError, match="unknown invitation"):
        join(guess.encode(), tmp_path / "node")
    with pytest.raises(SecurityError, match="unknown invitation"):  # a stranger's request is not even parsed
        asyncio.run(claim(guess, b"nonsense"))
    cloud.store.revoke("orin-1")
    with pytest.raises(SecurityError, match="unknown invitation"):
        join(line, tmp_path / "node")


def test_joining_again_replaces_the_certificate(cloud: Cloud, tmp_path: Path) -> None:
    old = describe(join(cloud.invite("orin-1"), tmp_path / "node").files.cert.read_bytes()).serial
    new = describe(join(cloud.invite("orin-1"), tmp_path / "node").files.cert.read_bytes()).serial
    assert old != new and cloud.store.revoked_serials() == (old,)


def test_no_node_may_take_the_clouds_name(tmp_path: Path) -> None:
    with Cloud(tmp_path / "cloud", ("127.0.0.1", "cloud.example.org")).running() as cloud:
        with pytest.raises(SecurityError, match="belongs to node 'cloud'"):
            join(cloud.invite("orin-1"), tmp_path / "node", ["cloud.example.org"])
        with pytest.raises(SecurityError, match="the cloud's own"):
            cloud.invite("cloud")
        both = join(cloud.invite("orin-1", "cloud.example.org"), tmp_path / "node", ["cloud.example.org"])
        assert both.hosts == ("cloud.example.org",)


def test_imposter_cloud_is_not_given_the_token(cloud: Cloud, tmp_path: Path) -> None:
    true = Invitation.decode(cloud.invite("orin-1"))
    other_ca = create_authority(tmp_path / "other", "gate-7").pem
    trusting_other = Invitation(true.address, true.node_id, true.token, other_ca, true.expires)
    with pytest.raises(SecurityError, match="not signed by the authority trusted here"):
        join(trusting_other.encode(), tmp_path / "node")
    cloud.store.check(true.token, "orin-1")  # not spent


def test_wrong_host_tells_what_the_certificate_lists(tmp_path: Path) -> None:
    with Cloud(tmp_path / "cloud", ("cloud.example.org", "10.1.2.3")).running() as cloud:
        with pytest.raises(
            SecurityError, match=r"'127\.0\.0\.1' but lists: cloud.example.org, 10\.1\.2\.3; .*--host 127"
        ):
            cloud.invite("orin-1")
        unchecked = cloud.store.create("orin-1", cloud.address, cloud.report.files.ca.read_bytes()).encode()
        with pytest.raises(SecurityError, match=r"not for '127\.0\.0\.1' but lists: cloud.example.org, 10\.1\.2\.3;"):
            join(unchecked, tmp_path / "node")


def test_names_work_as_well_as_addresses(cloud: Cloud, tmp_path: Path) -> None:
    cloud.host = "localhost"
    assert join(cloud.invite("orin-1"), tmp_path / "node").node_id == "orin-1"


def test_hammering_is_slowed_and_ends(cloud: Cloud, tmp_path: Path) -> None:
    line = cloud.invite("orin-1")
    true = Invitation.decode(line)
    guess = Invitation(true.address, true.node_id, "guess", true.ca_pem, true.expires)

    async def hammer() -> list[type[Exception]]:
        caught: list[type[Exception]] = []
        for _ in range(6):
            with pytest.raises((SecurityError, AdmissionRefused)) as error:
                await claim(guess, b"")
            caught.append(error.type)
        return caught

    assert asyncio.run(hammer()) == [SecurityError] * 5 + [AdmissionRefused]
    with pytest.raises(AdmissionRefused, match="wait 3 s"):
        join(line, tmp_path / "node")
    cloud.clock.advance(3_000_000_000)
    assert join(line, tmp_path / "node").node_id == "orin-1"


def test_bad_requests_do_not_cost_the_token(cloud: Cloud, tmp_path: Path) -> None:
    line = cloud.invite("orin-1")
    invitation = Invitation.decode(line)
    _, csr = new_key_and_csr("orin-1")
    for csr_pem, hosts, kind in (
        (b"nonsense", [], SecurityError),
        (csr, ["*"], SecurityError),
        (csr, [f"h{i}" for i in range(17)], PeerRejected),
    ):
        with pytest.raises(kind):
            asyncio.run(claim(invitation, csr_pem, hosts))
    with pytest.raises(AdmissionRefused):
        asyncio.run(claim(invitation, b"x" * 100_000))
    assert join(line, tmp_path / "node").node_id == "orin-1"


def test_unwritable_state_dir_does_not_cost_the_token(cloud: Cloud, tmp_path: Path) -> None:
    line = cloud.invite("orin-1")
    (tmp_path / "file").write_text("")
    with pytest.raises(SecurityError, match=r"file/node: cannot be made"):
        join(line, tmp_path / "file" / "node")
    assert join(line, tmp_path / "node").node_id == "orin-1"


def test_taken_port_is_named(cloud: Cloud) -> None:
    service = EnrolmentService(cloud.store, open_authority(cloud.state_dir))
    with pytest.raises(PortInUse, match=cloud.address):
        asyncio.run(start_enrolment(cloud.address, TlsFiles.of_state(cloud.state_dir), service))


def test_init_again_keeps_the_authority_and_changes_hosts(tmp_path: Path) -> None:
    first = init_cloud(tmp_path, "gate-7", ["10.0.0.1"])
    again = init_cloud(tmp_path, "gate-7", ["10.0.0.1", "cloud.example.org"])
    assert (first.authority, again.authority) == ("created", "kept")
    assert first.fingerprint == again.fingerprint
    assert describe(again.files.cert.read_bytes()).hosts == ("10.0.0.1", "cloud.example.org")
    with pytest.raises(SecurityError, match="--host"):
        init_cloud(tmp_path, "gate-7", [])


def test_own_authority_stays_where_it_is(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    create_authority(mine, "my company")
    report = init_cloud(tmp_path / "cloud", "gate-7", ["10.0.0.1"], (mine / "ca.pem", mine / "ca-key.pem"))
    assert (report.authority, report.authority_file) == ("yours", mine / "ca.pem")
    secret = (mine / "ca-key.pem").read_bytes()
    assert all(p.read_bytes() != secret for p in (tmp_path / "cloud").rglob("*") if p.is_file())
    assert check_files(report.files).hosts == ("10.0.0.1",)
    assert init_cloud(tmp_path / "cloud", "gate-7", ["10.0.0.2"]).fingerprint == report.fingerprint
    create_authority(tmp_path / "second", "another")
    with pytest.raises(SecurityError, match="names another authority"):
        init_cloud(
            tmp_path / "cloud", "gate-7", ["10.0.0.1"], (tmp_path / "second/ca.pem", tmp_path / "second/ca-key.pem")
        )


def test_inviting_before_init_tells_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SecurityError, match="run `tierline cloud init` first"):
        invite(tmp_path, "orin-1", "127.0.0.1:1")


def test_rate_limit_forgets_old_callers_and_refills() -> None:
    clock = ManualClock()
    limit = RateLimit(clock, burst=2, period_s=1.0)
    assert [limit.wait_s("a"), limit.wait_s("a"), limit.wait_s("a")] == [0.0, 0.0, 1.0]
    assert limit.wait_s("b") == 0.0
    clock.advance(500_000_000)
    assert limit.wait_s("a") == pytest.approx(0.5)
    clock.advance(500_000_000)
    assert [limit.wait_s("a"), limit.wait_s("a")] == [0.0, 1.0]
    for i in range(1024):
        limit.wait_s(str(i))
    assert limit.wait_s("a") == 0.0
