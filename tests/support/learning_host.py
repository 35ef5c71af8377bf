"""A process that takes part in one run after another, so that many runs cost its imports once.

`python learning_host.py` reads lines: the path of a node's specification begins a run, `end` leaves it. It answers with
one JSON object per line: `{"event": "up"}` at first, then per run `{"event": "ready"}`, and
`{"event": "ended", "error": ...}` when it has left or failed.
"""

from __future__ import annotations

import asyncio
import json
import queue
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

from tierline.cli.experiment.node import NodeSpec, run_learning
from tierline.core.errors import NodeFailed

DEADLINE_S = 240.0


class Host:
    """Such a process, as a test sees it."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(env), text=True
        )
        self.lines: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def say(self, line: str) -> None:
        assert self._process.stdin
        print(line, file=self._process.stdin, flush=True)

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self.lines.put(json.loads(line))
        self.lines.put({"event": "ended", "error": "the process is gone"})


class Borrowed:
    """Takes the place of `tierline.cli.process.Child`: its process is a Host, and stays when the run is over."""

    def __init__(self, host: Host, name: str, command: Sequence[str]) -> None:
        self.name, self.process = name, SimpleNamespace(poll=self._poll)
        self.ready: dict[str, Any] | None = None
        self._host = host
        self._code: int | None = None
        self._error = ""
        host.say(command[-1])

    def alive(self) -> bool:
        return self._poll() is None

    def send(self, number: int) -> None:
        if self.alive():
            self._host.say("end")

    def wait(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while self.alive() and time.monotonic() < deadline:
            self._listen(0.05)
        return not self.alive()

    def release(self) -> int:
        assert self._code is not None, f"{self.name} did not leave its run"
        return self._code

    def failure(self) -> NodeFailed:
        return NodeFailed(f"node {self.name!r}: {self._error or 'is not working'}")

    def _poll(self) -> int | None:
        self._listen(0.0)
        return self._code

    def _listen(self, timeout_s: float) -> None:
        while self._code is None:
            try:
                line = self._host.lines.get(timeout=timeout_s) if timeout_s else self._host.lines.get_nowait()
            except queue.Empty:
                return
            if line["event"] == "ready":
                self.ready = line
            else:
                self._error = line["error"]
                self._code = int(bool(self._error))


def borrow(hosts: Mapping[str, Host]) -> Callable[..., Borrowed]:
    """Use it as `Child`."""

    def child(name: str, command: Sequence[str], *_: object, **__: object) -> Borrowed:
        return Borrowed(hosts[name], name, command)

    return child


async def _serve() -> None:
    lines: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(lines.put_nowait, line.strip())
        loop.call_soon_threadsafe(lines.put_nowait, "")

    threading.Thread(target=read, daemon=True).start()
    _say({"event": "up"})
    while line := await lines.get():
        if line != "end":  # of a run that has failed by itself
            spec = msgspec.json.decode(await asyncio.to_thread(Path(line).read_bytes), type=NodeSpec)
            _say({"event": "ended", "error": await _take_part(spec, lines)})


async def _take_part(spec: NodeSpec, lines: asyncio.Queue[str]) -> str:
    """Until the next line; why it failed before, or nothing."""
    run = asyncio.ensure_future(run_learning(spec, _say))
    end = asyncio.ensure_future(lines.get())
    await asyncio.wait([run, end], return_when=asyncio.FIRST_COMPLETED)
    failed = run.exception() if run.done() else None
    for task in (run, end):
        task.cancel()
    await asyncio.gather(run, end, return_exceptions=True)
    if failed:
        traceback.print_exception(failed)
    return f"{type(failed).__name__}: {failed}" if failed else ""


def _say(document: Mapping[str, Any]) -> None:
    print(json.dumps(document), flush=True)


if __name__ == "__main__":
    asyncio.run(_serve())
