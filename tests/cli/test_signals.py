"""Being told to stop: a running demo leaves no process and no folder, and an interrupted import no traceback."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tierline.cli import app, main
from tierline.cli.signals import signals_wait


def processes_below(folder: Path) -> list[str]:
    """Command lines of processes that were given a file in this folder."""
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(file.read_bytes().decode(errors="replace"))
        except OSError:  # it has just ended
            continue
    return [line for line in lines if str(folder) in line]


@pytest.mark.parametrize(
    ("number", "code", "last"),
    [(signal.SIGTERM, 143, "tierline: ended by SIGTERM\n"), (signal.SIGINT, 130, "tierline: interrupted\n")],
)
def test_a_stopped_demo_leaves_nothing(tmp_path: Path, number: int, code: int, last: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tierline.cli.main", "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as process:
        assert process.stderr
        line = process.stderr.readline()
        assert line.startswith(f"starting 8 processes; logs in {tmp_path}/tierline-demo-")
        if number == signal.SIGTERM:
            assert process.stderr.readline().startswith("all ready")
            assert len(processes_below(tmp_path)) == 8
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (code, "")
    assert stderr.endswith(last)
    assert "Traceback" not in stderr
    assert list(tmp_path.glob("tierline-*")) == []
    assert processes_below(tmp_path) == []


def test_an_import_that_swallows_the_interrupt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def importing(arguments: object) -> int:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None
        return 0

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(app, "run_app", importing)
    assert main.main(["doctor"]) == main.EXIT_INTERRUPTED
    assert capsys.readouterr().err == "tierline: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_waits_until_a_started_process_is_known() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt), signals_wait():
        signal.raise_signal(signal.SIGINT)
        done.append("known")
    assert done == ["known"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_check_that_an_interrupt_made_fail_is_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def checking(arguments: object) -> int:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        return 1

    monkeypatch.setattr(app, "run_app", checking)
    assert main.main(["doctor"]) == main.EXIT_INTERRUPTED
    assert capsys.readouterr().err == "tierline: interrupted\n"


def test_a_stopped_training_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tierline.cli.main", "train", "--data", "digits", "--out", "new/model"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as process:
        assert process.stderr
        assert process.stderr.readline().startswith("  epoch")
        assert len(list(tmp_path.glob(".model-*"))) == 1
        process.terminate()
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (143, "")
    assert stderr.endswith("tierline: ended by SIGTERM\n")
    assert "Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []
