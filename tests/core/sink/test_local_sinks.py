"""stdout, jsonl and python."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from pathlib import Path

import pytest

from tierline.core.errors import ConfigError
from tierline.core.protocols import Outcome, Sink
from tierline.core.telemetry.ledger import SPANS, Hop
from tierline.core.telemetry.record import outcome_line
from tierline.core.types import Answer, NodeId, SampleId
from tierline.core.uri import open_sink


def outcome(seq: int, *, truth: int | None = None, reason: str = "") -> Outcome:
    return Outcome(
        id=SampleId(NodeId("dev"), 1, seq),
        view="cam",
        answer=Answer(1, "cat", 0.934),
        exit="local",
        degraded=bool(reason),
        reason=reason,
        num_views=1,
        plan=0,
        ledger=(Hop("dev", "device", 4_123_000, (0,) * len(SPANS)),),
        truth=truth,
    )


def put(sink: Sink, *outcomes: Outcome) -> None:
    async def go() -> None:
        for each in outcomes:
            await sink.put(each)
        await sink.close()

    asyncio.run(go())


def test_stdout_prints_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    put(open_sink("stdout"), outcome(1, truth=1), outcome(2, truth=0), outcome(3, reason="no_parent"))
    assert capsys.readouterr().out.splitlines() == [
        "dev/1/1 cam: cat 0.93 at local, 1 view, 4.1 ms",
        "dev/1/2 cam: !cat 0.93 at local, 1 view, 4.1 ms",
        "dev/1/3 cam: cat 0.93 at local, 1 view, 4.1 ms, degraded: no_parent",
    ]
    with pytest.raises(ConfigError, match="a file is jsonl:x"):
        open_sink("stdout:x")


def test_jsonl_appends_whole_lines_at_once(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"

    async def go() -> None:
        first, second = open_sink(f"jsonl:{file}"), open_sink(f"jsonl:{file}")
        await first.put(outcome(1))
        assert file.read_bytes() == outcome_line(outcome(1))  # visible without a flush
        await second.put(outcome(2))
        await first.put(outcome(3))
        await first.close()
        await second.close()

    asyncio.run(go())
    put(open_sink(f"jsonl:{file}"), outcome(4))
    assert file.read_bytes() == b"".join(outcome_line(outcome(i)) for i in (1, 2, 3, 4))


def test_jsonl_says_a_full_disk_once(caplog: pytest.LogCaptureFixture) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    sink = open_sink("jsonl:/dev/full")
    with caplog.at_level(logging.WARNING, "tierline.sink"):
        put(sink, outcome(1), outcome(2))
    assert sink.num_dropped == 2  # type: ignore[attr-defined]
    assert len(caplog.records) == 1 and "No space left" in caplog.text


def test_jsonl_needs_a_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be opened for writing: No such file"):
        open_sink(f"jsonl:{tmp_path}/none/a.jsonl")
    with pytest.raises(ConfigError, match="no file"):
        open_sink("jsonl:")
    with pytest.raises(ConfigError, match="Is a directory"):
        open_sink(f"jsonl:{tmp_path}")


def test_a_sink_that_got_nothing_has_started_nothing(tmp_path: Path) -> None:
    threads = threading.active_count()
    for uri in (f"jsonl:{tmp_path}/a.jsonl", "webhook:http://127.0.0.1:9/", "stdout"):
        sink = open_sink(uri)
        assert threading.active_count() == threads
        asyncio.run(sink.close())
    assert list(tmp_path.iterdir()) == []


def test_python_calls_a_file_off_the_loop_and_a_coroutine_on_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import threading\n"
        "got = []\n"
        "def plain(outcome):\n    got.append((outcome.id.seq, threading.get_ident()))\n    return got\n"
        "async def waits(outcome):\n    plain(outcome)\n"
    )
    for name, same_thread in (("plain", False), ("waits", True)):
        sink = open_sink(f"python:{file}:{name}")
        put(sink, outcome(1), outcome(2))
        got = sink._function.__globals__["got"]  # type: ignore[attr-defined]
        assert [seq for seq, _ in got] == [1, 2]
        assert {ident == threading.get_ident() for _, ident in got} == {same_thread}
        assert sink.num_failed == 0  # type: ignore[attr-defined]


def test_python_logs_the_first_failure_and_counts_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def broken(outcome):\n    raise ZeroDivisionError('mine')\n")
    sink = open_sink(f"python:{file}:broken")
    with caplog.at_level(logging.ERROR, "tierline.sink"):
        put(sink, outcome(1), outcome(2), outcome(3))
    assert sink.num_failed == 3  # type: ignore[attr-defined]
    assert len(caplog.records) == 1 and "ZeroDivisionError: mine" in caplog.text


def test_python_imports_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tierline_sink_probe.py").write_text("got = []\ndef take(outcome):\n    got.append(outcome)\n")
    (tmp_path / "tierline_sink_broken.py").write_text("import no_such_thing_here\n")
    monkeypatch.syspath_prepend(tmp_path)
    put(open_sink("python:tierline_sink_probe:take"), outcome(1))
    assert sys.modules["tierline_sink_probe"].got == [outcome(1)]
    monkeypatch.delitem(sys.modules, "tierline_sink_probe")
    with pytest.raises(ConfigError, match="needs 'no_such_thing_here'"):
        open_sink("python:tierline_sink_broken:take")


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("", "write python:MODULE:FUNCTION"),
        ("json", "write python:MODULE:FUNCTION"),
        ("no_such_module_here:f", "no module 'no_such_module_here'"),
        ("./no_such_file.py:f", "no such file"),
        ("json:lods", 'nearest is "load'),
    ],
)
def test_python_errors(location: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_sink(f"python:{location}")
