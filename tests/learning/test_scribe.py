"""Journals that are written behind: in order, several at once, and nothing more after an error."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path

import pytest

from tierline.core.link.letters import Head, Letter
from tierline.core.types import NodeId
from tierline.learning.driver._scribe import AtOnce, Behind
from tierline.learning.driver.journal import Journal

A, B = NodeId("a"), NodeId("b")


def letter(seq: int) -> Letter:
    return Letter(Head("run", A, B, seq, "turn", 0, "w"), (b"x",))


def on_disk(path: Path) -> list[int]:
    """What another process would find."""
    db = sqlite3.connect(path)
    found = [seq for (seq,) in db.execute("SELECT seq FROM letter ORDER BY seq")]
    db.close()
    return found


def test_at_once_means_written_when_it_returns(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.sqlite", "run")
    told: list[int] = []
    AtOnce(journal).write(lambda: journal.write([letter(1)]), lambda: told.extend(on_disk(tmp_path / "j.sqlite")))
    assert told == [1]
    journal.close()


def test_what_follows_waits_until_it_is_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    journal = Journal(path, "run")
    seen: list[list[int]] = []
    threads: set[str] = set()

    def write(seq: int) -> None:
        threads.add(threading.current_thread().name)
        journal.write([letter(seq)])

    async def run() -> None:
        scribe = Behind(journal, pytest.fail)
        scribe.write(None, lambda: seen.append([]))  # nothing to wait for
        assert seen == [[]]
        for seq in (1, 2):  # one transaction
            scribe.write(lambda seq=seq: write(seq), lambda: seen.append(on_disk(path)))  # type: ignore[misc]
        scribe.write(None, lambda: seen.append(on_disk(path)))
        assert seen == [[]]
        await scribe.idle()
        assert seen == [[], [1, 2], [1, 2], [1, 2]]
        scribe.write(lambda: write(3), lambda: seen.append(on_disk(path)))
        await scribe.idle()
        assert seen[-1] == [1, 2, 3]
        scribe.close()

    asyncio.run(asyncio.wait_for(run(), 20))
    journal.close()
    assert threading.current_thread().name not in threads


def test_after_an_error_nothing_is_written_or_told(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.sqlite", "run")
    errors: list[Exception] = []
    told: list[int] = []

    async def run() -> None:
        scribe = Behind(journal, errors.append)
        scribe.write(lambda: journal.write([letter(1)]), lambda: told.append(1))
        await scribe.idle()
        scribe.write(lambda: journal.write([letter(2), letter(1)]), lambda: told.append(2))
        await scribe.idle()
        scribe.write(lambda: journal.write([letter(3)]), lambda: told.append(3))
        scribe.write(None, lambda: told.append(4))
        for _ in range(5):
            await asyncio.sleep(0)
        scribe.close()

    asyncio.run(asyncio.wait_for(run(), 20))
    journal.close()
    assert told == [1] and [type(error) for error in errors] == [sqlite3.IntegrityError]
    assert on_disk(tmp_path / "j.sqlite") == [1]


def test_closing_ends_what_has_not_begun(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.sqlite", "run")

    async def run() -> None:
        scribe = Behind(journal, pytest.fail)
        scribe.write(lambda: journal.write([letter(1)]), lambda: pytest.fail("told"))
        scribe.close()
        await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(run(), 20))
    journal.close()
    assert on_disk(tmp_path / "j.sqlite") == []
