"""Raw RGB frames from a child process (ffmpeg, GStreamer), so that no video library is needed.

A thread reads the pipe into whole frames: the event loop is woken once per frame, not once per 64 KiB of pipe.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import re
import select
import shutil
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO

import numpy as np

from tierline.core.catalog import nearest
from tierline.core.clock import MonotonicClock
from tierline.core.errors import ConfigError, DataError, MissingDependency
from tierline.core.protocols import Capture, Clock

_log = logging.getLogger("tierline.source")
_POLL_S = 0.25  # how soon a silent pipe notices that the source is being closed
_PASSWORD = re.compile(r"//[^/@\s]*@")  # users log what ffmpeg says, and it repeats the address


@dataclass(frozen=True, slots=True)
class FramePlan:
    """What the child writes and what to do about its faults."""

    command: Sequence[str]
    remedy: str
    """How to install `command[0]`."""
    name: str
    """What messages call this source."""
    width: int = 640
    height: int = 480
    row_multiple: int = 1
    """Rows on the pipe are padded to a multiple of this many bytes (GStreamer: 4)."""
    queue: str = "latest"
    """`latest`: a newer frame replaces one nobody took. `all`: the child waits when `depth` frames lie unread."""
    depth: int = 4
    reconnect: bool = False
    """Start the child again when it ends or stalls; without, its end is the end of the source."""
    numbered: bool = False
    """Frames carry their index as `seq`."""
    stall_s: float = 10.0
    """A child without a whole frame for this long is taken for dead. 0: never."""
    backoff_s: tuple[float, float] = (0.5, 30.0)
    """First and largest bound of the pause before a restart; the pause is drawn from [0, bound)."""
    stop_s: float = 2.0
    """Time a child gets to end after SIGTERM, before SIGKILL."""
    rng: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        if self.queue not in ("latest", "all"):
            raise ConfigError(f"queue = {self.queue!r}{nearest(self.queue, ['latest', 'all'])}")
        if self.width < 1 or self.height < 1 or self.depth < 1:
            raise ConfigError(
                f"width = {self.width}, height = {self.height} and depth = {self.depth} must be at least 1"
            )
        if self.stall_s < 0:
            raise ConfigError(f"stall_s = {self.stall_s:g} must not be negative")

    @property
    def row_bytes(self) -> int:
        return -(-3 * self.width // self.row_multiple) * self.row_multiple


def ffmpeg_output(width: int, height: int) -> list[str]:
    """Arguments that make ffmpeg write every decoded frame once, scaled, as raw RGB to its stdout.

    ffmpeg would repeat and drop frames to hold a constant rate, and the option against it changed its name between
    versions 4 and 9; frames renumbered to one per second of virtual time leave it nothing to repair in any version.
    """
    filters = f"scale={width}:{height},settb=1,setpts=N"
    return ["-an", "-vf", filters, "-r", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]


class FrameReader:
    """A source that runs a child and hands out its frames; `rtsp`, `gst` and `video` say which child."""

    def __init__(self, plan: FramePlan, *, clock: Clock | None = None) -> None:
        self._plan = plan
        self._clock = clock or MonotonicClock()
        self._frames: deque[Capture] = deque()
        self._room = threading.Condition()  # guards what follows, and wakes the thread
        self._num_dropped = 0
        self._closing = False
        self._ended = False
        self._failure: DataError | None = None
        self._num_read = 0
        self._said = ""
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()

    @property
    def num_dropped(self) -> int:
        return self._num_dropped

    async def check(self) -> None:
        """Raises MissingDependency when the child's program is not installed."""
        program = self._plan.command[0]
        if shutil.which(program) is None:
            raise MissingDependency(f"{self._plan.name}: {program} is not installed; {self._plan.remedy}")

    async def open(self) -> None:
        """Start the child. Raises what `check` raises."""
        await self.check()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name=f"frames {self._plan.name}", daemon=True)
        self._thread.start()

    async def capture(self) -> Capture | None:
        """The next frame, (height, width, 3) uint8; None at the end. Raises DataError when the child failed for good.

        `capture_ns` is the time from a frame's first byte on the pipe to its last.
        """
        while True:
            self._changed.clear()
            with self._room:
                if self._frames:
                    frame = self._frames.popleft()
                    self._room.notify()
                    return frame
                if self._ended or self._thread is None:
                    if self._failure is not None and not self._closing:
                        raise self._failure
                    return None
            await self._changed.wait()

    async def close(self) -> None:
        """End the child: SIGTERM, a deadline, SIGKILL. Unread frames are forgotten."""
        with self._room:
            self._closing = True
            self._room.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        self._frames.clear()

    def _work(self) -> None:
        """The thread: children one after the other until the end."""
        attempt = 0
        try:
            while not self._closing:
                before = self._num_read
                problem = self._run_child()
                if not self._plan.reconnect:
                    if problem and not self._closing:
                        self._failure = DataError(f"{self._plan.name}: {problem}")
                    return
                attempt = 0 if self._num_read > before else attempt + 1
                self._pause(attempt, problem or "the stream ended")
        except OSError as error:
            self._failure = DataError(f"{self._plan.name}: {self._plan.command[0]} does not run: {error}")
        finally:
            with self._room:
                self._ended = True
            self._wake()

    def _run_child(self) -> str:
        """One child from start to end; returns what went wrong, empty for a clean end."""
        # Its own process group: Ctrl-C reaches only us, and helpers that the child starts end with it.
        child = subprocess.Popen(
            list(self._plan.command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert child.stdout is not None and child.stderr is not None
        complaints: deque[str] = deque(maxlen=3)
        listener = threading.Thread(target=_listen, args=(child.stderr, complaints), daemon=True)
        listener.start()
        try:
            problem = self._read_frames(child.stdout.fileno())
            if not problem and not self._closing:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(self._plan.stop_s)  # the pipe ended; let it give its exit status
        finally:
            child.stdout.close()  # first: a child stuck in a write to a full pipe does not see SIGTERM
            self._stop(child)
            listener.join(self._plan.stop_s)
            if not listener.is_alive():
                child.stderr.close()
        if problem or child.returncode == 0:
            return problem
        said = complaints[-1] if complaints else f"exit status {child.returncode}"
        return f"{self._plan.command[0]}: {said}"

    def _read_frames(self, pipe: int) -> str:
        plan = self._plan
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        while not self._closing:
            buffer = bytearray(plan.height * plan.row_bytes)
            filled, began_ns, waited_s = memoryview(buffer), 0, 0.0
            while filled:
                if not poll.poll(1000 * _POLL_S):
                    waited_s += _POLL_S
                    if self._closing:
                        return ""
                    if plan.stall_s and waited_s >= plan.stall_s:
                        return f"no whole frame for {plan.stall_s:g} s"
                    continue
                began_ns = began_ns or self._clock.now_ns()
                num_bytes = os.readv(pipe, [filled])
                if num_bytes == 0:
                    return ""  # a part of a frame at the end is no frame
                filled = filled[num_bytes:]
            rows = np.frombuffer(buffer, np.uint8).reshape(plan.height, plan.row_bytes)
            image = rows[:, : 3 * plan.width].reshape(plan.height, plan.width, 3)
            seq = self._num_read if plan.numbered else None
            self._num_read += 1
            self._said = ""
            self._push(Capture(image, seq, None, self._clock.now_ns() - began_ns))
        return ""

    def _push(self, frame: Capture) -> None:
        with self._room:
            if self._plan.queue == "latest":
                self._num_dropped += len(self._frames)
                self._frames.clear()
            else:
                self._room.wait_for(lambda: len(self._frames) < self._plan.depth or self._closing)
            self._frames.append(frame)
        self._wake()

    def _pause(self, attempt: int, problem: str) -> None:
        first_s, most_s = self._plan.backoff_s
        delay_s = self._plan.rng.uniform(0.0, min(most_s, first_s * 2.0 ** min(attempt, 32)))
        with self._room:
            if self._closing:
                return
            if problem != self._said:  # once per outage, not once per attempt
                _log.warning("%s: %s; trying again until it comes back", self._plan.name, problem)
                self._said = problem
            self._room.wait_for(lambda: self._closing, delay_s)

    def _stop(self, child: subprocess.Popen[bytes]) -> None:
        if child.poll() is not None:
            return  # reaped: its number may belong to someone else by now
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(self._plan.stop_s)
                return

    def _wake(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop ended without closing the source
                self._loop.call_soon_threadsafe(self._changed.set)


def _listen(stderr: IO[bytes], complaints: deque[str]) -> None:
    while line := stderr.readline(4096):
        if text := line.decode(errors="replace").strip():
            complaints.append(_PASSWORD.sub("//", text))
