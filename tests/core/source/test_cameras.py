"""`video:`, `rtsp://` and `gst:` through stand-in programs on PATH: real processes that record how they were called.

Where the true programs are installed, they run too.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tierline.core.errors import ConfigError, DataError, MissingDependency
from tierline.core.protocols import Capture
from tierline.core.uri import open_source

HAS_FFMPEG = shutil.which("ffmpeg") is not None
HAS_GST = shutil.which("gst-launch-1.0") is not None


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, program: str, num_bytes: int) -> Path:
    """A program that writes its arguments to the returned file and two frames to stdout."""
    file = folder / program
    calls = folder / "calls.json"
    file.write_text(
        f"#!{sys.executable} -S\n"
        "import json, os, sys\n"
        f"open({str(calls)!r}, 'w').write(json.dumps(sys.argv[1:]))\n"
        f"os.write(1, bytes(i % 256 for i in range({num_bytes})) + bytes({num_bytes}))\n"
    )
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return calls


def take(uri: str, limit: int) -> list[Capture]:
    async def go() -> list[Capture]:
        source = open_source(uri, "cam", 0)
        await source.open()
        captures = []
        while len(captures) < limit and (capture := await asyncio.wait_for(source.capture(), 20)) is not None:
            captures.append(capture)
        assert source.num_dropped == 0
        await source.close()
        return captures

    return asyncio.run(go())


def test_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in(tmp_path, monkeypatch, "ffmpeg", 5 * 2 * 3)
    (tmp_path / "v.mp4").touch()
    got = take(f"video:{tmp_path / 'v.mp4'}?width=5&height=2&loop=true&realtime=true", 9)
    assert [(c.seq, c.image.shape) for c in got] == [(0, (2, 5, 3)), (1, (2, 5, 3))]
    np.testing.assert_array_equal(got[0].image.ravel(), np.arange(30))
    said = json.loads(calls.read_text())
    assert said.index("-stream_loop") < said.index("-i") and said.index("-re") < said.index("-i")
    assert said[said.index("-i") + 1] == f"file:{tmp_path / 'v.mp4'}"
    assert "scale=5:2" in said[said.index("-vf") + 1] and "rgb24" in said
    with pytest.raises(DataError, match=r"w\.mp4: no such file"):
        take(f"video:{tmp_path / 'w.mp4'}", 1)


def test_rtsp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in(tmp_path, monkeypatch, "ffmpeg", 4 * 2 * 3)
    got = take("rtsp://u:p@cam.local/s?channel=1?width=4&height=2&queue=all", 4)  # four of two: it was dialled again
    assert [c.seq for c in got] == [None] * 4
    said = json.loads(calls.read_text())
    assert said[said.index("-i") + 1] == "rtsp://u:p@cam.local/s?channel=1"
    with pytest.raises(ConfigError, match="no host"):
        open_source("rtsp:", "cam", 0)


def test_gst_rows_are_padded_to_four_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in(tmp_path, monkeypatch, "gst-launch-1.0", 16 * 2)
    uri = "gst:v4l2src device='/dev/my cam' ! identity?width=5&height=2&reconnect=false&queue=all"
    got = take(uri, 9)
    assert len(got) == 2
    np.testing.assert_array_equal(got[0].image.reshape(2, 15), [np.arange(15), 16 + np.arange(15)])
    said = json.loads(calls.read_text())
    assert said[:6] == ["-q", "v4l2src", "device=/dev/my cam", "!", "identity", "!"]
    assert "video/x-raw,format=RGB,width=5,height=2" in said
    for bad in ("gst:", "gst:videotestsrc name='x"):
        with pytest.raises(ConfigError):
            open_source(bad, "cam", 0)


def test_without_the_programs_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "v.mp4").touch()
    for uri in (f"video:{tmp_path / 'v.mp4'}", "rtsp://h/s", "gst:videotestsrc"):
        with pytest.raises(MissingDependency, match=r"view 'cam' .*is not installed; install it"):
            take(uri, 1)


@pytest.mark.skipif(not HAS_FFMPEG, reason="needs ffmpeg")
def test_true_ffmpeg(tmp_path: Path) -> None:
    red = ["-f", "lavfi", "-i", "color=red:size=64x48:rate=5:duration=1"]
    subprocess.run(["ffmpeg", "-loglevel", "error", *red, str(tmp_path / "v.avi")], check=True, timeout=30)
    got = take(f"video:{tmp_path / 'v.avi'}?width=32&height=24", 99)
    assert [c.seq for c in got] == [0, 1, 2, 3, 4]
    assert got[0].image.shape == (24, 32, 3)
    np.testing.assert_allclose(got[0].image.mean((0, 1)), [255, 0, 0], atol=8)
    gaps = ["-f", "lavfi", "-i", "testsrc=size=64x48:rate=10:duration=2", "-vf", "select=not(between(n\\,3\\,12))"]
    target = ["-c:v", "ffv1", "-f", "matroska", str(tmp_path / "v.mkv")]
    subprocess.run(["ffmpeg", "-loglevel", "error", *gaps, *target], check=True, timeout=30)
    assert len(take(f"video:{tmp_path / 'v.mkv'}?width=32&height=24", 99)) == 10  # no repeats for the missing second
    (tmp_path / "bad.avi").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"bad\.avi"):
        take(f"video:{tmp_path / 'bad.avi'}", 1)


@pytest.mark.skipif(not HAS_GST, reason="needs gst-launch-1.0")
def test_true_gstreamer() -> None:
    got = take("gst:videotestsrc pattern=red num-buffers=3?width=34&height=24&queue=all&reconnect=false", 9)
    assert len(got) == 3
    np.testing.assert_allclose(got[0].image.reshape(-1, 3), [[255, 0, 0]] * (24 * 34), atol=8)


def test_a_check_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in(tmp_path, monkeypatch, "ffmpeg", 1)
    stand_in(tmp_path, monkeypatch, "gst-launch-1.0", 1)
    (tmp_path / "v.mp4").touch()
    for uri in (f"video:{tmp_path / 'v.mp4'}", "rtsp://h/s", "gst:videotestsrc"):
        asyncio.run(open_source(uri, "cam", 0).check())
    assert not calls.exists()
    monkeypatch.setenv("PATH", "")
    for uri in (f"video:{tmp_path / 'v.mp4'}", "rtsp://h/s", "gst:videotestsrc"):
        with pytest.raises(MissingDependency, match=r"view 'cam' .*is not installed; install it"):
            asyncio.run(open_source(uri, "cam", 0).check())
