"""A real HTTP server on a free loopback port."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tierline.core.errors import ConfigError
from tierline.core.protocols import Outcome
from tierline.core.sink.webhook import Webhook
from tierline.core.telemetry.record import outcome_record
from tierline.core.types import Answer, NodeId, SampleId


class Receiver(ThreadingHTTPServer):
    """Answers with the statuses of `script`, then 204; `gate` holds it back."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[dict[str, object]] = []
        self.paths: list[str] = []
        self.script: list[int] = []
        self.num_connections = 0
        self.gate = threading.Event()
        self.gate.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/answer?key=1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Receiver

    def setup(self) -> None:
        super().setup()
        self.server.num_connections += 1

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.gate.wait(3)
        status = self.server.script.pop(0) if self.server.script else 204
        if status == 204:
            assert self.headers["Content-Type"] == "application/json"
            self.server.got.append(json.loads(body))
            self.server.paths.append(self.path)
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.gate.set()
        server.shutdown()
        thread.join()


def outcome(seq: int) -> Outcome:
    return Outcome(SampleId(NodeId("dev"), 1, seq), "cam", Answer(1, "cat", 0.5), "local", False, "", 1, 0, ())


def put(sink: Webhook, num: int) -> None:
    async def go() -> None:
        for seq in range(num):
            await sink.put(outcome(seq))
        await sink.close()
        await sink.close()  # twice is once

    asyncio.run(go())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_posts_in_order_over_one_connection(receiver: Receiver) -> None:
    sink = Webhook(location=receiver.url)
    put(sink, 20)
    assert receiver.got == [outcome_record(outcome(i)) for i in range(20)]
    assert set(receiver.paths) == {"/answer?key=1"}
    assert receiver.num_connections == 1
    assert (sink.num_sent, sink.num_dropped) == (20, 0)


def test_server_faults_are_retried(receiver: Receiver) -> None:
    receiver.script = [503, 429, 500]
    sink = Webhook(location=receiver.url, backoff_s=0.001)
    put(sink, 2)
    assert [record["id"]["seq"] for record in receiver.got] == [0, 1]  # type: ignore[index]
    assert sink.num_dropped == 0


def test_a_refusal_is_dropped_at_once_and_said_once(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    receiver.script = [400, 404]
    sink = Webhook(location=receiver.url, backoff_s=600.0)
    with caplog.at_level(logging.WARNING, "tierline.sink"):
        put(sink, 3)
    assert [record["id"]["seq"] for record in receiver.got] == [2]  # type: ignore[index]
    assert (sink.num_sent, sink.num_dropped) == (1, 2)
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 2 and "status 400" in said[0] and "1 sent, 2 dropped in all" in said[1]
    assert "key=1" not in caplog.text


def test_retries_end(caplog: pytest.LogCaptureFixture) -> None:
    sink = Webhook(location=f"http://127.0.0.1:{free_port()}/", retries=2, backoff_s=0.001)
    with caplog.at_level(logging.WARNING, "tierline.sink"):
        put(sink, 3)
    assert (sink.num_sent, sink.num_dropped) == (0, 3)
    assert "ConnectionRefusedError" in caplog.text


def test_a_stuck_receiver_never_holds_up_put(receiver: Receiver) -> None:
    receiver.gate.clear()
    sink = Webhook(location=receiver.url, depth=4)

    async def go() -> None:
        began_s = time.monotonic()
        for seq in range(50):
            await sink.put(outcome(seq))
            assert time.monotonic() - began_s < 2.0  # the receiver holds each post for longer
        assert 45 <= sink.num_dropped <= 46  # four wait, one may be under way
        receiver.gate.set()
        await sink.close()

    asyncio.run(go())
    assert sink.num_sent + sink.num_dropped == 50
    assert sink.num_sent == len(receiver.got) >= 4


def test_close_gives_up_after_its_grace_and_counts_the_rest() -> None:
    sink = Webhook(location=f"http://127.0.0.1:{free_port()}/", retries=50, backoff_s=600.0, grace_s=0.1, depth=3)
    began_s = time.monotonic()
    put(sink, 3)
    assert time.monotonic() - began_s < 5
    assert (sink.num_sent, sink.num_dropped) == (0, 3)


@pytest.mark.parametrize(
    ("location", "options"),
    [
        ("127.0.0.1:80/x", {}),
        ("ftp://h/x", {}),
        ("http:///x", {}),
        ("http://h:port/", {}),
        ("http://h/", {"depth": 0}),
        ("http://h/", {"timeout_s": 0.0}),
    ],
)
def test_bad_addresses_and_options(location: str, options: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Webhook(location=location, **options)  # type: ignore[arg-type]
