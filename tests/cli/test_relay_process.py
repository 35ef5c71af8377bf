"""The relay as a process, with real sockets: bytes, order, half-close, cuts. Counts only, no timing."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

TIMEOUT_S = 20


class RelayProcess:
    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "tierline.cli.relay", *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = self.read()["ready"]

    def read(self) -> Any:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def ask(self, **order: Any) -> Any:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self.read()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT_S)


@contextmanager
def relay_to(port: int, link: str) -> Iterator[RelayProcess]:
    relay = RelayProcess("--to", f"127.0.0.1:{port}", "--link", link, "--seed", "1")
    with relay.process:
        yield relay
        assert relay.process.stdin
        relay.process.stdin.close()
        assert relay.process.wait(TIMEOUT_S) == 0, "the relay ends with its standard input"


@pytest.fixture
def echo_port() -> Iterator[int]:
    """A server that returns what it reads, and ends its stream when the client ended its own."""

    def answer(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    connection.sendall(data)
            except ConnectionError:
                pass

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(TIMEOUT_S)


def receive(connection: socket.socket, num_bytes: int) -> bytes:
    received = b""
    while len(received) < num_bytes and (data := connection.recv(65536)):
        received += data
    return received


def test_bytes_come_back_whole_and_in_order_and_are_counted(echo_port: int) -> None:
    # Much more than the queue holds, so that the relay must stop and resume reading.
    message = b"".join(i.to_bytes(4, "big") for i in range(500_000))
    with relay_to(echo_port, "rtt_ms=1,mbit=200,stall_share=0.003,queue_bytes=20000") as relay:
        with relay.connect() as one, relay.connect() as two:

            def send() -> None:
                one.sendall(message)
                one.shutdown(socket.SHUT_WR)

            sender = threading.Thread(target=send)
            sender.start()
            two.sendall(b"beside")
            assert receive(two, 6) == b"beside"
            assert receive(one, len(message) + 1) == message, "and then the end of the stream"
            sender.join(TIMEOUT_S)
        stats = relay.ask(stats=True)["stats"]
        give_up = time.monotonic() + TIMEOUT_S
        while relay.ask(stats=True)["stats"]["connections"]["open"]:
            assert time.monotonic() < give_up, "a connection that both sides ended is still open"
    assert stats["bytes"] == {"up": len(message) + 6, "down": len(message) + 6}
    assert stats["connections"]["accepted"] == 2
    assert stats["stalls"]["up"] > 0


def test_a_cut_resets_connections_and_a_restored_link_takes_new_ones(echo_port: int) -> None:
    with relay_to(echo_port, "lan") as relay:
        with relay.connect() as connection:
            connection.sendall(b"before")
            assert receive(connection, 6) == b"before"
            assert relay.ask(cut=True) == {"done": "cut"}
            with pytest.raises(ConnectionError):
                connection.recv(1)
        with pytest.raises(ConnectionError), relay.connect() as refused:
            refused.sendall(b"x")
            refused.recv(1)
        assert relay.ask(stats=True)["stats"]["connections"] == {"open": 0, "accepted": 1, "refused": 1}
        assert relay.ask(restore=True) == {"done": "restore"}
        with relay.connect() as connection:
            connection.sendall(b"after")
            assert receive(connection, 5) == b"after"


def test_a_silent_cut_keeps_connections_and_loses_nothing(echo_port: int) -> None:
    with relay_to(echo_port, "lan") as relay, relay.connect() as connection:
        connection.sendall(b"before")
        assert receive(connection, 6) == b"before"
        relay.ask(cut="silent")
        connection.sendall(b"held")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        assert relay.ask(stats=True)["stats"]["bytes"] == {"up": 6, "down": 6}
        relay.ask(restore=True)
        connection.settimeout(TIMEOUT_S)
        assert receive(connection, 4) == b"held"


def test_the_link_changes_while_it_runs_and_bad_orders_are_answered(echo_port: int) -> None:
    with relay_to(echo_port, "3g") as relay:
        assert relay.ask(set={"rtt_ms": 0, "mbit": 1000}) == {"done": "set"}
        assert relay.ask(set="lann")["error"].startswith("no such link: 'lann'")
        assert 'nearest is "rtt_ms"' in relay.ask(set={"rtt": 1})["error"]
        assert 'nearest is "restore"' in relay.ask(restor=True)["error"]
        with relay.connect() as connection:
            connection.sendall(bytes(300_000))
            assert len(receive(connection, 300_000)) == 300_000


def test_no_one_behind_the_relay_ends_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with relay_to(port, "lan") as relay:
        with pytest.raises(ConnectionError), relay.connect() as connection:
            connection.sendall(b"x")
            connection.recv(1)
        assert relay.ask(stats=True)["stats"]["connections"]["refused"] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--to", "nowhere"], 2, "expected HOST:PORT"),
        (["--to", "127.0.0.1:1", "--link", "wify"], 2, 'nearest is "wifi"'),
    ],
)
def test_bad_flags_are_one_line_and_an_exit_code(arguments: list[str], code: int, message: str) -> None:
    command = [sys.executable, "-m", "tierline.cli.relay", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert ended.returncode == code
    assert message in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_taken_port_is_named(echo_port: int) -> None:
    command = [sys.executable, "-m", "tierline.cli.relay", "--to", "127.0.0.1:1", "--listen", f"127.0.0.1:{echo_port}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert ended.returncode == 12
    assert f"127.0.0.1:{echo_port} is taken" in ended.stderr
