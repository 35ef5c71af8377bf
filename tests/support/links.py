"""A parent and its children on real loopback channels, and a relay between them that can be cut."""

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

from tierline.core import errors
from tierline.core.clock import MonotonicClock
from tierline.core.flow.node import new_epoch
from tierline.core.link.dial import Backoff, Dialler
from tierline.core.link.fleet import HEARTBEAT_S, Beat, Fetch, Hello, Welcome
from tierline.core.link.link import Link
from tierline.core.link.listen import Listener
from tierline.core.link.messages import Body, Frame, Mode, Open
from tierline.core.link.session import Session
from tierline.core.link.status import CODE_KEY
from tierline.core.wire import frame_to_wire

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
        self.learned = b""

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

    def jobs(self) -> bytes:
        return self.learned

    def is_serving(self, section: str = "") -> bool | None:
        return self.sections.get(section) if section else self.serving

    def orders(self, child: str) -> tuple[bytes, ...]:
        return ()

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
        self.jobs: list[bytes] = []
        self.beside: list[str] = []
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
            on_order=lambda order, fetch: self.plans.append(order.plan),
            on_revoked=self.revoked.append,
            on_jobs=self.jobs.append,
            alongside=self._alongside,
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

    async def _alongside(self, channel: grpc.aio.Channel, address: str) -> None:
        self.beside.append(address)
        try:
            await asyncio.Event().wait()
        finally:
            self.beside.append("over")

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
    assert not unexpected, unexpected


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
