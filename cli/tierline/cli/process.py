"""One child process: its ready line, its log file, and a pipe through which it learns that we are gone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tierline.core.errors import NodeFailed


class Child:
    """A running child in a session of its own, so that Ctrl-C at the terminal reaches its parent only.

    A line of its standard output that is a JSON object with the key `ready`, or with `event` equal to `ready`, says
    that it works; other lines go to `on_line`, or to the log. Its standard input stays open as long as we live.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        env: Mapping[str, str],
        *,
        on_change: Callable[[Child], None],
        on_line: Callable[[str, str], None] | None = None,
    ) -> None:
        """`on_change` is called from a thread when the child is ready and when it has ended."""
        self.name = name
        self.log = log
        self.ready: dict[str, Any] | None = None
        self._on_change, self._on_line = on_change, on_line
        with log.open("ab") as sink:
            self._log_start = sink.tell()
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                env=dict(env),
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, name=f"output of {name}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def alive(self) -> bool:
        return self.process.poll() is None

    def write(self, line: str) -> None:
        """One line to its standard input. Raises NodeFailed when it has ended."""
        assert self.process.stdin
        try:
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            raise self.failure() from error

    def send(self, number: int) -> None:
        """A signal; SIGKILL goes to whatever it started, too. Nothing happens when it has ended."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                if number == signal.SIGKILL:
                    os.killpg(self.pid, number)
                else:
                    self.process.send_signal(number)

    def wait(self, timeout_s: float) -> bool:
        """Whether it ended in time."""
        try:
            self.process.wait(max(0.0, timeout_s))
        except subprocess.TimeoutExpired:
            return False
        return True

    def release(self) -> int:
        """Close what connects us to the ended child; its exit code (negative: the signal that ended it)."""
        self._reader.join(timeout=5.0)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                with contextlib.suppress(OSError):  # unsent lines of a broken pipe
                    pipe.close()
        return self.process.wait()

    def failure(self) -> NodeFailed:
        """Why it ended: how, and the last line of its log."""
        code = self.process.poll()
        how = "is not working" if code is None else _how(code)
        last = self.last_log_line()
        return NodeFailed(f"node {self.name!r} {how}{f': {last}' if last else ''}; see {self.log}")

    def last_log_line(self) -> str:
        """The last line that this process (not a former one of its name) wrote to its log."""
        with self.log.open("rb") as file:
            file.seek(max(self._log_start, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def _read(self) -> None:
        assert self.process.stdout
        for raw in self.process.stdout:
            line = raw.decode("utf-8", "replace").rstrip("\n")
            document = _ready_line(line) if self.ready is None else None
            if document is not None:
                self.ready = document
                self._on_change(self)
            elif self._on_line:
                self._on_line(self.name, line)
            else:
                with self.log.open("ab") as log:
                    log.write(raw)
        self.process.wait()
        self._on_change(self)


def _ready_line(line: str) -> dict[str, Any] | None:
    try:
        document = json.loads(line)
    except ValueError:
        return None
    if isinstance(document, dict) and (document.get("event") == "ready" or "ready" in document):
        return document
    return None


def _how(code: int) -> str:
    return f"ended with exit code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
