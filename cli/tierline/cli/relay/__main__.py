"""`python -m tierline.cli.relay --listen 127.0.0.1:0 --to HOST:PORT --link lte`: the relay as a process.

Prints `{"ready": PORT}`, then answers one JSON line per JSON line on its standard input:

    {"cut": true}                 reset all connections, refuse new ones
    {"cut": "silent"}             keep connections open, let nothing pass
    {"restore": true}             let traffic pass again
    {"set": {"rtt_ms": 80}}       change the link; {"set": "wifi"} replaces it
    {"stats": true}               bytes, stalls and connections so far

It ends when its standard input ends, so it never outlives the process that started it, or on SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import selectors
import signal
import sys
import threading
from typing import Any

from tierline.cli.relay.profile import parse_link
from tierline.cli.relay.server import Relay
from tierline.core.catalog import nearest
from tierline.core.errors import ConfigError, TierlineError

_VERBS = ("cut", "restore", "set", "stats")


def obey(relay: Relay, line: bytes) -> dict[str, Any]:
    """Carry out one control line; the reply, `{"error": ...}` for a bad one."""
    try:
        order = json.loads(line)
        if not isinstance(order, dict) or len(order) != 1:
            raise ConfigError(f"a control line is an object with one key out of {', '.join(_VERBS)}")
        ((verb, value),) = order.items()
        if verb == "cut":
            relay.cut(silent=value == "silent")
        elif verb == "restore":
            relay.restore()
        elif verb == "set":
            relay.change(value)
        elif verb == "stats":
            return {"stats": relay.stats()}
        else:
            raise ConfigError(f"no control verb {verb!r}{nearest(verb, _VERBS)}")
    except (TierlineError, ValueError) as error:
        return {"error": str(error)}
    return {"done": verb}


def address(text: str) -> tuple[str, int]:
    """`HOST:PORT`, IPv6 hosts in brackets. Raises ConfigError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"address {text!r}: expected HOST:PORT")
    return host.strip("[]"), int(port)


async def serve(relay: Relay, listen: tuple[str, int]) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    try:
        _say({"ready": await relay.start(*listen)})

        def answer(line: bytes) -> None:
            _say(obey(relay, line))

        def read() -> None:
            # A thread, since event loops cannot watch regular files; unbuffered, so that it dies without a lock.
            with contextlib.suppress(RuntimeError):  # the loop closed first
                for line in io.FileIO(0, closefd=False):
                    loop.call_soon_threadsafe(answer, line)
                loop.call_soon_threadsafe(stopped.set)

        threading.Thread(target=read, name="relay-control", daemon=True).start()
        await stopped.wait()
    finally:
        await relay.close()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tierline.cli.relay", description="Emulates a link for real connections.")
    parser.add_argument("--listen", default="127.0.0.1:0", help="HOST:PORT to accept connections on; port 0: any")
    parser.add_argument("--to", required=True, help="HOST:PORT to connect onward to")
    parser.add_argument("--link", default="lan", help="lte | wifi | 3g | lan | rtt_ms=50,mbit=5.85,stall_share=0.01")
    parser.add_argument("--seed", type=int, default=0, help="decides which packets stall")
    options = parser.parse_args(argv)

    async def run() -> None:
        listen, to = address(options.listen), address(options.to)
        await serve(Relay(parse_link(options.link), to, options.seed), listen)

    # The default selector rounds timers up to whole milliseconds; `select` waits with microsecond resolution.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    try:
        loop.run_until_complete(run())
    except TierlineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        loop.close()
    return 0


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    sys.exit(main())
