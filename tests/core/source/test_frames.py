"""Real children, real pipes: each child is a small Python script writing raw frames."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tierline.core.errors import ConfigError, DataError, MissingDependency
from tierline.core.source._frames import FramePlan, FrameReader

HEAD = """
import os, signal, sys, time
from pathlib import Path
here = Path(sys.argv[1])
launch = len(list(here.glob("launch*"))) + 1
(here / f"launch{launch}").write_text(str(os.getpid()))
def frame(value, num_bytes=2 * 3 * 3):
    os.write(1, bytes([value]) * num_bytes)
"""


def reader(folder: Path, script: str, **options: Any) -> FrameReader:
    file = folder / "child.py"
    file.write_text(HEAD + script)
    plan = {"width": 2, "height": 3, "queue": "all", "backoff_s": (0.001, 0.002)} | options
    return FrameReader(FramePlan([sys.executable, "-S", str(file), str(folder)], "", "view 'cam'", **plan))


async def values(source: FrameReader, limit: int = 99) -> list[int]:
    got: list[int] = []
    while len(got) < limit and (capture := await asyncio.wait_for(source.capture(), 10)) is not None:
        assert capture.image.dtype == "uint8"
        got.append(int(capture.image[0, 0, 0]))
    return got


async def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.002)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_every_frame_in_order_and_a_partial_one_is_none(tmp_path: Path) -> None:
    async def go() -> None:
        source = reader(tmp_path, "for i in range(5): frame(i)\nframe(9, 7)\n", numbered=True)
        await source.open()
        first = await source.capture()
        assert first is not None and first.seq == 0 and first.image.shape == (3, 2, 3) and first.capture_ns >= 0
        assert await values(source) == [1, 2, 3, 4]
        assert await source.capture() is None
        assert source.num_dropped == 0
        await source.close()

    asyncio.run(go())


def test_latest_keeps_the_newest_and_counts_the_rest(tmp_path: Path) -> None:
    async def go() -> None:
        source = reader(tmp_path, "for i in range(6): frame(i)\nsys.stdin.read(); signal.pause()\n", queue="latest")
        await source.open()
        await until(lambda: source.num_dropped == 5)
        assert await values(source, 1) == [5]
        assert source.num_dropped == 5
        waiting = asyncio.create_task(source.capture())
        await asyncio.sleep(0)
        await source.close()
        assert await waiting is None

    asyncio.run(go())


def test_all_makes_the_child_wait(tmp_path: Path) -> None:
    script = "for i in range(60):\n    frame(i, 256 * 256 * 3)\n    (here / 'sent').write_text(str(i + 1))\n"

    async def go() -> None:
        source = reader(tmp_path, script, width=256, height=256, depth=3)
        await source.open()
        sent, steady = 0, 0
        while steady < 50:  # the child stops by itself: no progress over 50 looks
            await asyncio.sleep(0.005)
            text = (tmp_path / "sent").read_text() if (tmp_path / "sent").exists() else ""
            steady = steady + 1 if text and int(text) == sent else 0
            sent = int(text or 0)
        assert 3 <= sent <= 5  # `depth` queued, one in hand, one on the pipe
        assert await values(source) == list(range(60))
        assert source.num_dropped == 0
        await source.close()

    asyncio.run(go())


def test_a_dead_child_is_replaced_and_said_once_per_outage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    script = (
        "if launch in (2, 3): sys.exit('camera is away')\nframe(10 * launch)\nframe(10 * launch + 1)\nsys.exit(1)\n"
    )

    async def go() -> None:
        source = reader(tmp_path, script, reconnect=True)
        await source.open()
        assert await values(source, 6) == [10, 11, 40, 41, 50, 51]
        await source.close()

    with caplog.at_level(logging.WARNING, "tierline.source"):
        asyncio.run(go())
    said = [r.getMessage() for r in caplog.records]
    assert sum("camera is away; trying again" in text for text in said) == 1
    assert "exit status 1" in said[0]


def test_a_silent_child_is_taken_for_dead(tmp_path: Path) -> None:
    script = "frame(launch)\nif launch == 1: signal.pause()\nsys.exit(1)\n"

    async def go() -> None:
        source = reader(tmp_path, script, reconnect=True, stall_s=0.25)
        await source.open()
        assert await values(source, 2) == [1, 2]
        await source.close()
        assert not alive(int((tmp_path / "launch1").read_text()))

    asyncio.run(go())


def test_without_reconnect_faults_end_the_source(tmp_path: Path) -> None:
    async def go(script: str, message: str, **options: Any) -> None:
        source = reader(tmp_path, script, **options)
        await source.open()
        assert await values(source, 1) == [1]
        with pytest.raises(DataError, match=message):
            await source.capture()
        await source.close()

    asyncio.run(go("frame(1)\nsys.exit('rtsp://user:secret@h/x: refused')\n", "view 'cam': .*rtsp://h/x: refused"))
    asyncio.run(go("frame(1)\nsys.exit(3)\n", "exit status 3"))
    asyncio.run(go("frame(1)\nsignal.pause()\n", "no whole frame for 0.25 s", stall_s=0.25))


def test_much_talk_on_stderr_does_not_block(tmp_path: Path) -> None:
    async def go() -> None:
        source = reader(tmp_path, "sys.stderr.write('x' * 300000)\nsys.stderr.flush()\nframe(1)\n")
        await source.open()
        assert await values(source) == [1]
        await source.close()

    asyncio.run(go())


def test_close_kills_a_child_that_ignores_sigterm(tmp_path: Path) -> None:
    script = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nframe(1)\nwhile True: time.sleep(9)\n"

    async def go() -> None:
        source = reader(tmp_path, script, stop_s=0.1)
        await source.open()
        assert await values(source, 1) == [1]
        pid = int((tmp_path / "launch1").read_text())
        assert alive(pid)
        await source.close()
        assert not alive(pid)
        assert await source.capture() is None

    asyncio.run(go())


def test_close_ends_a_reader_that_waits_for_room_or_for_its_next_try(tmp_path: Path) -> None:
    async def go(script: str, **options: Any) -> None:
        source = reader(tmp_path, script, **options)
        await source.open()
        await until(lambda: (tmp_path / "now").exists())
        began_s = time.monotonic()
        await source.close()
        assert time.monotonic() - began_s < 5
        (tmp_path / "now").unlink()

    asyncio.run(go("while True:\n    frame(1, 9999)\n    (here / 'now').touch()\n", depth=1))
    deaf = "signal.signal(signal.SIGTERM, lambda *_: None)\n"  # as ffmpeg, which is stuck in its write
    asyncio.run(go(deaf + "while True:\n    frame(1, 9999)\n    (here / 'now').touch()\n", depth=1, stop_s=60.0))
    asyncio.run(go("(here / 'now').touch()\n", reconnect=True, backoff_s=(600.0, 600.0)))


def test_a_source_never_opened_closes(tmp_path: Path) -> None:
    async def go() -> None:
        source = reader(tmp_path, "")
        assert await source.capture() is None
        await source.close()

    asyncio.run(go())


def test_missing_program_and_bad_options() -> None:
    plan = FramePlan(["no-such-program-here"], "install it somehow", "view 'cam'")
    with pytest.raises(MissingDependency, match="view 'cam': no-such-program-here is not installed; install it some"):
        asyncio.run(FrameReader(plan).open())
    for options in ({"queue": "lates"}, {"width": 0}, {"depth": 0}, {"stall_s": -1.0}):
        with pytest.raises(ConfigError):
            FramePlan(["x"], "", "", **options)  # type: ignore[arg-type]
