"""Does the link relay do what it says? Round trip and rate of real TCP connections through it, against what was asked.

    python benchmarks/bench_relay.py [--seconds 3] [LINK ...]

Prints one JSON line per link: asked and measured round trip (a 64-byte echo on an idle link, and on one that another
connection fills: the queue is shared), asked and measured rate up and down (goodput of one bulk transfer), the plain
loopback echo of the same run beside them, and the environment.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import threading
import time

import numpy as np

from tierline.cli.relay.profile import parse_link
from tierline.core.telemetry.environment import environment

ECHO, SINK, FLOOD = b"E", b"S", b"F"
CHUNK_BYTES = 32 * 1024


def serve(listener: socket.socket) -> None:
    """One thread per connection; its first byte asks for an echo, a sink, or a flood of bytes."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=answer, args=(connection,), daemon=True).start()


def answer(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection:
        try:
            verb = connection.recv(1)
            if verb == FLOOD:
                while True:
                    connection.sendall(bytes(CHUNK_BYTES))
            received, started = 0, 0.0
            while data := connection.recv(CHUNK_BYTES):
                if verb == ECHO:
                    connection.sendall(data)
                else:
                    # Count from the first bytes on: the time they needed to get here is latency, not rate.
                    started = started or time.perf_counter()
                    received += len(data)
            if verb == SINK:
                elapsed = time.perf_counter() - started
                connection.sendall(json.dumps(8e-6 * received / elapsed).encode())
        except OSError:
            return


def connect(port: int, verb: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(verb)
    return connection


def round_trips_ms(port: int, count: int) -> np.ndarray:
    with connect(port, ECHO) as connection:
        times = []
        for _ in range(count):
            started = time.perf_counter()
            connection.sendall(bytes(64))
            received = 0
            while received < 64:
                received += len(connection.recv(64))
            times.append(1e3 * (time.perf_counter() - started))
    return np.array(times[1:])


def rate_up_mbit(port: int, seconds: float) -> float:
    with connect(port, SINK) as connection:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            connection.sendall(bytes(CHUNK_BYTES))
        connection.shutdown(socket.SHUT_WR)
        return float(json.loads(connection.recv(64)))


def loaded_round_trips_ms(port: int, seconds: float) -> np.ndarray:
    """Round trips while another connection uploads as fast as it can."""
    bulk = threading.Thread(target=rate_up_mbit, args=(port, seconds))
    bulk.start()
    time.sleep(seconds / 4)  # until the queue is full
    times = round_trips_ms(port, 6)
    bulk.join()
    return times


def rate_down_mbit(port: int, seconds: float) -> float:
    with connect(port, FLOOD) as connection:
        connection.recv(CHUNK_BYTES)
        started = time.perf_counter()
        received = 0
        while time.perf_counter() < started + seconds:
            received += len(connection.recv(CHUNK_BYTES))
        return 8e-6 * received / (time.perf_counter() - started)


def measure(link: str, target_port: int, seconds: float) -> dict[str, object]:
    profile = parse_link(link)
    command = [sys.executable, "-m", "tierline.cli.relay", "--to", f"127.0.0.1:{target_port}", "--link", link]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as relay:
        assert relay.stdin and relay.stdout
        try:
            port = json.loads(relay.stdout.readline())["ready"]
            count = max(10, int(seconds * 1e3 / max(profile.rtt_ms, 3)))
            through = round_trips_ms(port, count)
            loaded = loaded_round_trips_ms(port, seconds)
            up, down = rate_up_mbit(port, seconds), rate_down_mbit(port, seconds)
        finally:
            relay.stdin.close()
    p50, p99 = (round(float(np.percentile(through, q)), 3) for q in (50, 99))
    return {
        "benchmark": "relay",
        "link": link,
        "rtt_ms": {
            "asked": profile.rtt_ms,
            "p50": p50,
            "p99": p99,
            "count": len(through),
            "p50_beside_bulk": round(float(np.median(loaded)), 1),
        },
        "mbit": {"asked": profile.mbit, "up": round(up, 3), "down": round(down, 3)},
        "plain_loopback_rtt_ms_p50": round(float(np.median(round_trips_ms(target_port, 200))), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("links", nargs="*", default=["lte", "wifi", "3g", "lan", "lte,stall_share=0.01"])
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        for link in options.links:
            result = measure(link, listener.getsockname()[1], options.seconds)
            print(json.dumps({**result, "environment": environment()}), flush=True)


if __name__ == "__main__":
    main()
