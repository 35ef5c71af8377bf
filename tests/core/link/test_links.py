"""Real channels on loopback: joining, talking, losing and finding each other again."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tierline.core import errors
from tierline.core.clock import MonotonicClock
from tierline.core.flow.node import new_epoch
from tierline.core.link import dial, listen
from tierline.core.link.dial import Backoff, Dialler
from tierline.core.link.fleet import HEARTBEAT_S, Beat, Fetch, Hello, Welcome
from tierline.core.link.link import Link
from tierline.core.link.listen import Listener
from tierline.core.link.messages import Body, CaptureNow, Frame, Mode, Open, Pull
from tierline.core.link.session import Session
from tierline.core.link.status import CODE_KEY
from tierline.core.types import NodeId, SampleId
from tierline.core.wire import frame_to_wire
from tierline.v1 import fleet_pb2, fleet_pb2_grpc

EXCHANGE = "/tierline.v1.Inference/Exchange"
FILE = bytes(range(256)) * 3000
FOR_EVER_S = 30.0


class Desk:
    """A parent that admits three children and writes down what it hears."""

    def __init__(self) -> None:
        self.bodies: list[tuple[str, Body]] = []
        self.up: list[str] = []
        self.down: list[str] = []
        self.beats: list[Beat] = []
        self.serving = True
        self.sections: dict[str, bool] = {}
        self.heartbeat_s = HEARTBEAT_S

    def admit(self, hello: Hello) -> Welcome:
        if hello.node not in ("a", "b", "c"):
            raise errors.PeerRejected(f"no node {hello.node!r} here")
        if hello.bundle_digest not in ("", "d1"):
            raise errors.DigestMismatch(f"Bundle {hello.bundle_digest}, this is d1")
        return Welcome("p", 5, b"{}", "digest", "d1", b"manifest", "run", self.heartbeat_s)

    def child_up(self, link: Link) -> None:
        self.up.append(link.peer)

    def child_down(self, link: Link) -> None:
        self.down.append(link.peer)

    def body(self, link: Link, body: Body, arrived_ns: int, decode_ns: int) -> None:
        self.bodies.append((link.peer, body))

    def beat(self, beat: Beat) -> None:
        self.beats.append(beat)

    def file(self, digest: str) -> bytes:
        if digest != "f1":
            raise errors.BundleError(f"no file {digest}")
        return FILE

    def revoked(self) -> tuple[str, ...]:
        return ()

    def is_serving(self, section: str = "") -> bool | None:
        return self.sections.get(section) if section else self.serving

    def status(self) -> bytes:
        return b'{"p": {}}'


class Child:
    """The dialling side."""

    def __init__(self, name: str, address: str, **hello: Any) -> None:
        self.bodies: list[Body] = []
        self.changes: list[bool] = []
        self.fetched: list[bytes] = []
        self.plans: list[bytes] = []
        self.revoked: list[tuple[str, ...]] = []
        self.want = ""
        epoch = new_epoch()
        self.link = Link(Session(name, epoch), MonotonicClock(), self._body)
        values: dict[str, Any] = dict.fromkeys(("tier", "bundle_digest", "version"), "")
        values.update(node=name, epoch=epoch, views=(), codecs=())
        self.dialler = Dialler(
            address,
            self.link,
            hello=lambda: Hello(**{**values, **hello}),
            beat=lambda: Beat(name, epoch, b"{}", 0.0),
            prepare=self._prepare,
            on_change=self.changes.append,
            on_plan=self.plans.append,
            on_revoked=self.revoked.append,
            credentials=None,
            tls=None,
            rng=random.Random(3),
            backoff=Backoff(0.02, 0.05),
        )
        self.task = asyncio.create_task(self.dialler.run())

    async def _prepare(self, welcome: Welcome, fetch: Fetch) -> None:
        assert (welcome.parent, welcome.bundle_digest, welcome.run) == ("p", "d1", "run")
        if self.want:
            self.fetched.append(await fetch(self.want))

    def _body(self, link: Link, body: Body, arrived_ns: int, decode_ns: int) -> None:
        self.bodies.append(body)

    async def stop(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError, errors.TierlineError):
            await self.task


@asynccontextmanager
async def parent(address: str = "127.0.0.1:0", desk: Desk | None = None, epoch: int = 0) -> AsyncIterator[Listener]:
    listener = Listener(
        desk or Desk(), node="p", epoch=epoch or new_epoch(), address=address, clock=MonotonicClock(), credentials=None
    )
    await listener.start()
    try:
        yield listener
    finally:
        await listener.stop(0)


@asynccontextmanager
async def child(name: str, address: str, **hello: Any) -> AsyncIterator[Child]:
    made = Child(name, address, **hello)
    try:
        yield made
    finally:
        await made.stop()


async def until(condition: Callable[[], Any], what: str = "") -> None:
    """Turn the loop until it holds. Ask for what stays true: a machine with other work may be stopped at any moment."""
    loop = asyncio.get_running_loop()
    end = loop.time() + FOR_EVER_S
    while not condition():
        assert loop.time() < end, f"never came true: {what}"
        await asyncio.sleep(0.002)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run on a fresh loop; whatever nobody caught fails the test."""
    unexpected: list[str] = []

    def note(_: Any, context: dict[str, Any]) -> None:
        # gRPC has one poller per process: it may wake for the loop of an earlier test, which is closed.
        if "PollerCompletionQueue" not in context["message"]:
            unexpected.append(str(context))

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(note)
        await main()

    asyncio.run(watched())
    assert not unexpected


def mode(n: int) -> Mode:
    return Mode(n, True)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


async def ended(made: Child) -> errors.TierlineError:
    with pytest.raises(errors.TierlineError) as caught:
        await asyncio.wait_for(asyncio.shield(made.task), FOR_EVER_S)
    return caught.value


# --- meeting -------------------------------------------------------------------------------------------------------


def test_join_fetch_exchange_and_heartbeats() -> None:
    async def main() -> None:
        desk = Desk()
        async with parent(desk=desk) as listener, child("a", listener.address) as a:
            a.want = "f1"
            await until(lambda: a.changes[:1] == [True] and desk.up == ["a"])
            assert a.fetched == [FILE]
            for n in range(50):
                assert a.link.post(mode(n))
                assert listener.links["a"].post(mode(100 + n))
            await until(lambda: len(a.bodies) == len(desk.bodies) == 50)
            assert desk.bodies == [("a", mode(n)) for n in range(50)]
            assert a.bodies == [mode(100 + n) for n in range(50)]
            await until(lambda: desk.beats)
            assert desk.beats[0].node == "a"
            listener.push_plan(b"plan 2")
            await until(lambda: a.plans == [b"plan 2"])
            counters = listener.links["a"].counters
            assert counters.received_payload_bytes == 0 and counters.received_framing_bytes > 50 * 14
            assert a.link.rtt_ns > 0

    run(main)


def test_a_parent_that_ends_and_starts_again() -> None:
    async def main() -> None:
        port, first, second = free_port(), Desk(), Desk()
        async with parent(f"127.0.0.1:{port}", first) as one:
            a = Child("a", one.address)
            await until(lambda: first.up == ["a"])
            a.link.post(mode(1), keep=True)
            await until(lambda: first.bodies)
        await until(lambda: a.changes[:2] == [True, False])
        assert not a.link.post(mode(2)), "not kept, so not taken"
        a.link.post(mode(3), keep=True)
        a.link.post(mode(4), keep=True)
        async with parent(f"127.0.0.1:{port}", second) as two:
            await until(lambda: len(second.bodies) >= 2)
            a.link.post(mode(5))
            await until(lambda: ("a", mode(5)) in second.bodies)
            numbers = [body.level for _, body in second.bodies if isinstance(body, Mode)]
            assert numbers in ([3, 4, 5], [1, 3, 4, 5]), "kept frames once, in order"
            two.links["a"].post(mode(6))
            await until(lambda: a.bodies == [mode(6)])
        assert a.changes[:3] == [True, False, True]
        await a.stop()

    run(main)


def test_an_abrupt_loss_is_no_end_even_while_writing() -> None:
    """A relay in between cuts the connection under full traffic, again and again."""

    async def main() -> None:
        desk = Desk()
        async with parent(desk=desk) as listener, relay(listener.address) as (address, cut), child("a", address) as a:
            for n in range(5):
                await until(lambda n=n: len(desk.up) > n and a.link.is_up and listener.links["a"].is_up, f"up {n}")
                for k in range(300):
                    a.link.post(mode(k))
                    listener.links["a"].post(mode(k))
                await asyncio.sleep(0)
                cut()
                for k in range(300):
                    a.link.post(mode(k))
                await until(lambda n=n: len(desk.down) > n and a.changes.count(False) > n, f"down {n}")
                assert not a.task.done()
            await until(lambda: a.link.is_up)

    run(main)


def test_a_child_that_restarts_supersedes_itself() -> None:
    async def main() -> None:
        desk = Desk()
        async with parent(desk=desk) as listener, child("a", listener.address) as old:
            await until(lambda: desk.up == ["a"])
            async with child("a", listener.address) as new:
                await until(lambda: new.link.is_up)
                error = await ended(old)
                assert isinstance(error, errors.PeerRejected) and "'a'" in str(error)
                new.link.post(mode(7))
                await until(lambda: ("a", mode(7)) in desk.bodies)
                listener.links["a"].post(mode(8))
                await until(lambda: new.bodies == [mode(8)])
                assert old.bodies == [] and listener.links["a"].is_up

    run(main)


def test_of_several_streams_the_last_is_served() -> None:
    async def main() -> None:
        desk = Desk()
        async with parent(desk=desk) as listener, grpc.aio.insecure_channel(listener.address) as channel:
            listener.join(Hello("a", "device", 1, (), "", (), ""))
            calls: list[Any] = []
            for epoch in range(1, 4):
                calls.append(channel.stream_stream(EXCHANGE)())
                await calls[-1].write(opening("a", epoch))
                assert await calls[-1].read() is not grpc.aio.EOF
            for call in calls[:2]:
                assert await refusal(call) == (grpc.StatusCode.FAILED_PRECONDITION, "rejected")
            listener.links["a"].post(mode(1))
            assert await calls[2].read() is not grpc.aio.EOF
            calls[2].cancel()

    run(main)


# --- refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hello", "kind", "says"),
    [
        ("stranger", {}, errors.PeerRejected, "stranger"),
        ("a", {"bundle_digest": "d2"}, errors.DigestMismatch, "Bundle d2, this is d1"),
    ],
)
def test_a_parent_refuses_for_good(
    name: str, hello: dict[str, Any], kind: type[errors.TierlineError], says: str
) -> None:
    async def main() -> None:
        async with parent() as listener, child(name, listener.address, **hello) as refused:
            error = await ended(refused)
            assert type(error) is kind and says in str(error)
            assert listener.links == {}

    run(main)


@pytest.mark.parametrize(("low", "high"), [(2, 9), (0, 0)])
def test_no_common_protocol(low: int, high: int) -> None:
    async def main() -> None:
        async with parent() as listener, grpc.aio.insecure_channel(listener.address) as channel:
            fleet = fleet_pb2_grpc.FleetStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await fleet.Join(fleet_pb2.Hello(node="a", protocol_min=low, protocol_max=high))
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert code_of(caught.value) == "rejected"
            assert f"{low} to {high}" in (caught.value.details() or "")

    run(main)


def test_a_node_that_did_not_join() -> None:
    async def main() -> None:
        async with parent() as listener, stream(listener.address, opening("a", 1)) as call:
            assert await refusal(call) == (grpc.StatusCode.FAILED_PRECONDITION, "rejected")

    run(main)


BAD = [
    ("no frame", b"\xff\xff\xff"),
    ("not Open", frame_to_wire(Frame(1, 0, mode(1))).SerializeToString()),
    ("nothing", b""),
]


@pytest.mark.parametrize(("what", "first"), BAD)
def test_a_first_frame_that_is_not_open(what: str, first: bytes) -> None:
    async def main() -> None:
        async with parent() as listener, stream(listener.address, first) as call:
            assert await refusal(call) == (grpc.StatusCode.INVALID_ARGUMENT, "bad_frame"), what

    run(main)


def frames_that_break_a_stream() -> list[tuple[str, bytes]]:
    twice = frame_to_wire(Frame(1, 0, Pull(0, "x", [SampleId(NodeId("p"), 1, 1)])))
    twice.pull.ids.origin.append("q")
    infinite = frame_to_wire(Frame(1, 0, CaptureNow([SampleId(NodeId("p"), 1, 1)], float("inf"))))
    return [
        ("no frame", b"\xff\xff\xff"),
        ("a gap", frame_to_wire(Frame(5, 0, mode(1))).SerializeToString()),
        ("an acknowledgement of nothing", frame_to_wire(Frame(0, 9)).SerializeToString()),
        ("columns", twice.SerializeToString()),
        ("no time", infinite.SerializeToString()),
    ]


@pytest.mark.parametrize(("what", "bad"), frames_that_break_a_stream())
def test_a_bad_frame_ends_only_its_own_link(what: str, bad: bytes) -> None:
    async def main() -> None:
        desk = Desk()
        async with parent(desk=desk) as listener, child("b", listener.address) as b:
            listener.join(Hello("a", "device", 1, (), "", (), ""))
            await until(lambda: b.link.is_up)
            async with stream(listener.address, opening("a", 1)) as call:
                assert await call.read() is not grpc.aio.EOF
                await call.write(bad)
                assert await refusal(call) == (grpc.StatusCode.INVALID_ARGUMENT, "bad_frame"), what
            b.link.post(mode(1))
            await until(lambda: desk.bodies == [("b", mode(1))])
            assert desk.down == ["a"] and b.changes == [True]
            async with stream(listener.address, opening("a", 2)) as call:
                assert await call.read() is not grpc.aio.EOF
                await call.write(frame_to_wire(Frame(1, 0, mode(2))).SerializeToString())
                await until(lambda: ("a", mode(2)) in desk.bodies, "the sender may come back")

    run(main)


def test_a_bad_frame_of_the_parent_does_not_end_the_child() -> None:
    async def main() -> None:
        desk = Desk()
        async with parent(desk=desk) as listener, child("a", listener.address) as a:
            await until(lambda: a.link.is_up)
            listener.links["a"]._session._next_seq = 77
            listener.links["a"].post(mode(1))
            await until(lambda: a.changes[:3] == [True, False, True])
            assert "77" in a.dialler.last_error
            listener.links["a"].post(mode(2))
            await until(lambda: a.bodies == [mode(2)])

    run(main)


# --- silence -------------------------------------------------------------------------------------------------------


def test_a_silent_child_is_declared_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "HEARTBEAT_S", 0.05)

    async def main() -> None:
        desk = Desk()
        desk.heartbeat_s = 60.0  # so this child never beats again
        async with parent(desk=desk) as listener, child("a", listener.address) as a:
            await until(lambda: desk.up == ["a"])
            await until(lambda: desk.down[:1] == ["a"])
            await until(lambda: len(desk.up) >= 2, "and may come back, for it is not refused")
            assert not a.task.done()

    run(main)


def test_a_silent_parent_is_declared_dead() -> None:
    async def main() -> None:
        desk = Desk()
        desk.heartbeat_s = 0.05
        async with parent(desk=desk) as listener, relay(listener.address) as (address, cut), child("a", address) as a:
            await until(lambda: a.link.is_up and len(desk.beats) >= 3)
            cut.freeze()
            await until(lambda: a.changes[:2] == [True, False])
            assert "no sign of life" in a.dialler.last_error
            cut()
            await until(lambda: a.changes[:3] == [True, False, True])

    run(main)


def test_a_parent_that_never_says_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial, "JOIN_TIMEOUT_S", 0.1)

    async def main() -> None:
        async def exchange(requests: Any, context: Any) -> None:
            await asyncio.Event().wait()

        async with parent() as real:
            server = grpc.aio.server()
            fleet_pb2_grpc.add_FleetServicer_to_server(listen._FleetService(real, real._desk), server)
            handler = grpc.stream_stream_rpc_method_handler(exchange)
            server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler("tierline.v1.Inference", {"Exchange": handler}),)
            )
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            async with child("a", f"127.0.0.1:{port}") as a:
                await until(lambda: a.dialler.last_error)
                assert not a.task.done() and a.changes == []
            await server.stop(0)

    run(main)


def test_heartbeats_of_a_stranger_are_refused() -> None:
    async def main() -> None:
        desk = Desk()
        async with parent(desk=desk) as listener, grpc.aio.insecure_channel(listener.address) as channel:
            listener.join(Hello("a", "device", 1, (), "", (), ""))
            fleet: Any = fleet_pb2_grpc.FleetStub(channel)

            async def attend(*nodes: str) -> grpc.StatusCode:
                call = fleet.Attend()
                with suppress(grpc.aio.AioRpcError):
                    for node in nodes:
                        await call.write(fleet_pb2.Heartbeat(node=node, status=b"{}"))
                        if await call.read() is grpc.aio.EOF:
                            break
                return grpc.StatusCode(await call.code())

            assert await attend("stranger") is grpc.StatusCode.FAILED_PRECONDITION
            assert await attend("a", "b") is grpc.StatusCode.INVALID_ARGUMENT
            assert [beat.node for beat in desk.beats] == ["a"]

    run(main)


# --- health, files, ports ------------------------------------------------------------------------------------------


def test_health_answers_the_usual_client() -> None:
    async def main() -> None:
        desk = Desk()
        async with parent(desk=desk) as listener, grpc.aio.insecure_channel(listener.address) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
            for name in ("", "tierline.v1.Fleet", "tierline.v1.Inference"):
                assert (await health.Check(health_pb2.HealthCheckRequest(service=name))).status == serving
            desk.sections = {"edge": True, "cloud": False}
            for name, state in (("section/edge", serving), ("section/cloud", not_serving)):
                assert (await health.Check(health_pb2.HealthCheckRequest(service=name))).status == state
            for name in ("nonesuch", "n" * 500, "section/", "section/nonesuch"):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await health.Check(health_pb2.HealthCheckRequest(service=name))
                assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            watch = health.Watch(health_pb2.HealthCheckRequest(service=""))
            assert (await watch.read()).status == serving
            desk.serving = False
            assert (await health.Check(health_pb2.HealthCheckRequest())).status == not_serving
            assert (await watch.read()).status == not_serving
            watch.cancel()
            unknown = health.Watch(health_pb2.HealthCheckRequest(service="nonesuch"))
            assert (await unknown.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            unknown.cancel()

    run(main)


def test_a_file_that_is_not_there_and_status() -> None:
    async def main() -> None:
        async with parent() as listener, grpc.aio.insecure_channel(listener.address) as channel:
            fleet: Any = fleet_pb2_grpc.FleetStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await fleet.Fetch(fleet_pb2.FetchRequest(digest="f2")).read()
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION and code_of(caught.value) == "bundle"
            assert (await fleet.Status(fleet_pb2.StatusRequest())).status == b'{"p": {}}'

    run(main)


def test_a_port_that_is_taken() -> None:
    async def main() -> None:
        async with parent() as listener:
            with pytest.raises(errors.PortInUse, match=listener.address):
                async with parent(listener.address):
                    pass

    run(main)


# --- what these tests need -----------------------------------------------------------------------------------------


def opening(node: str, epoch: int) -> bytes:
    return frame_to_wire(Frame(0, 0, Open(node, epoch))).SerializeToString()


def code_of(error: grpc.aio.AioRpcError) -> str:
    return dict(error.trailing_metadata() or ())[CODE_KEY]  # type: ignore[arg-type]


@asynccontextmanager
async def stream(address: str, first: bytes) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.stream_stream(EXCHANGE)()
        await call.write(first)
        yield call
        call.cancel()


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while await asyncio.wait_for(call.read(), FOR_EVER_S) is not grpc.aio.EOF:
            pass
    return caught.value.code(), code_of(caught.value)


class Cut:
    """Ends all connections of a relay at once, or leaves them standing without a word."""

    def __init__(self) -> None:
        self.writers: list[asyncio.StreamWriter] = []
        self.flows = asyncio.Event()
        self.flows.set()

    def __call__(self) -> None:
        self.flows.set()
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()

    def freeze(self) -> None:
        self.flows.clear()


@asynccontextmanager
async def relay(address: str) -> AsyncIterator[tuple[str, Cut]]:
    host, _, port = address.rpartition(":")
    cut, tasks = Cut(), set[asyncio.Task[None]]()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                await cut.flows.wait()
                writer.write(data)
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward_reader, onward = await asyncio.open_connection(host, int(port))
        cut.writers += [writer, onward]
        both: list[Awaitable[None]] = [copy(reader, onward), copy(onward_reader, writer)]
        task = asyncio.ensure_future(asyncio.gather(*both))
        tasks.add(task)  # type: ignore[arg-type]

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", cut
    finally:
        cut()
        server.close()
        await asyncio.gather(*tasks, return_exceptions=True)
