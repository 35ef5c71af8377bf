"""What a journal promises, in a file and in a PostgreSQL database alike; what is said where no database can be had."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import throwaway_postgres as throwaway
from tests.support.linked import Linked
from tests.support.quadratics import Quadratic

from tierline.core import catalog
from tierline.core.arrays import Params
from tierline.core.errors import ConfigError, DataError, LinkUnavailable
from tierline.core.link.letters import Head, Letter
from tierline.core.types import NodeId
from tierline.learning.cast import federation
from tierline.learning.driver import _postgres
from tierline.learning.driver.journal import Journal, Report, Saved, remove_journal
from tierline.learning.driver.memory import Memory
from tierline.learning.rule import Rule

A, B = NodeId("a"), NodeId("b")
SHORT, LONG = 10, 100_000
"""Bytes; a file keeps the long ones apart."""


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path | str]:
    where: Path | str = tmp_path / "j.sqlite"
    if request.param == "postgres":
        where = request.getfixturevalue("database")
    yield where
    remove_journal(where, "run")


def letter(seq: int, content: bytes, *, tag: str = "w", mark: tuple[int, int] | None = None) -> Letter:
    return Letter(Head("run", A, B, seq, "turn", 0, tag, "message", mark), (content,))


def saved(round: int, num_bytes: int) -> Saved:
    return Saved(round, 1, round + 1, {"x": np.full(num_bytes, round, np.uint8), "n": round}, {("w", B): (round, 0)})


@pytest.mark.parametrize("num_bytes", [SHORT, LONG])
def test_a_journal_opened_again_knows_states_letters_and_answers(place: Path | str, num_bytes: int) -> None:
    journal = Journal(place, "run")
    assert journal.saved(A) is None and journal.letters(A) == []
    for round in range(3):
        report = Report({"losses": [round]}, b"model" * round)
        journal.commit(A, saved(round, num_bytes), (), report)
    shared = (bytes(num_bytes),)
    letters = [letter(1, b"", mark=(2, 5)), Letter(letter(2, b"").head, shared), Letter(letter(3, b"").head, shared)]
    journal.write(letters)
    journal.note_answer(A, ("turn", 1), 0, {B})
    journal.note_answer(A, ("turn", 2), 1, {A, B})
    journal.note_answer(A, ("resync", 1), 0, ())
    journal.close()
    again = Journal(place, "run")
    found = again.saved(A)
    assert found is not None and (found.round, found.num_resyncs, found.next_seq) == (2, 1, 3)
    assert found.cursors == {("w", B): (2, 0)} and found.state["n"] == 2
    assert np.array_equal(found.state["x"], np.full(num_bytes, 2, np.uint8))
    assert again.letters(A) == letters and again.letters(B) == []
    assert again.answers(A, found) == {(("turn", 2), 1): {A, B}, (("resync", 1), 0): set()}
    again.settle(A, [1, 3])
    assert again.letters(A) == letters[1:2]
    again.commit(A, saved(3, num_bytes), [2], None)
    assert again.letters(A) == []
    again.close()


def test_what_is_written_together_is_there_or_not(place: Path | str) -> None:
    journal = Journal(place, "run")
    with journal.together():
        journal.write([letter(1, bytes(LONG))])
        journal.commit(A, saved(0, SHORT), (), None)
    with pytest.raises((sqlite3.IntegrityError, DataError)), journal.together():
        journal.commit(A, saved(1, SHORT), (), None)
        journal.write([letter(2, bytes(LONG)), letter(1, b"")])
    journal.write([letter(3, b"word")])
    journal.close()
    again = Journal(place, "run")
    found = again.saved(A)
    assert found is not None and found.round == 0
    assert [each.head.seq for each in again.letters(A)] == [1, 3]
    again.close()


def test_a_removed_journal_begins_anew(place: Path | str) -> None:
    journal = Journal(place, "run")
    journal.write([letter(1, bytes(LONG))])
    journal.close()
    remove_journal(place, "run")
    remove_journal(place, "run")  # nothing is there
    again = Journal(place, "run")
    assert again.letters(A) == []
    again.close()


def test_a_journal_of_another_run_or_version_is_refused(place: Path | str) -> None:
    journal = Journal(place, "run")
    with pytest.raises(ConfigError, match="the journal of run 'run', not of 'other'; remove it"):
        Journal(place, "other", name="run")
    journal._store.execute("UPDATE journal SET schema = 1")
    journal.close()
    with pytest.raises(ConfigError, match="schema 1, this version writes schema 2; remove it"):
        Journal(place, "run")


def test_journals_of_one_database_do_not_meet(database: str) -> None:
    one, two = Journal(database, "run", name="one"), Journal(database, "run", name="two")
    one.write([letter(1, b"a")])
    assert two.letters(A) == []
    for journal, name in ((one, "one"), (two, "two")):
        journal.close()
        remove_journal(database, name)


def test_a_database_that_cannot_be_had_is_told_in_one_line(database: str) -> None:
    closed = throwaway.free_port()
    wrong, none = database.replace(f":{throwaway.PASSWORD}@", ":secret@"), database.removesuffix("postgres") + "none"
    cases: list[tuple[str, type[Exception], str]] = [
        (wrong, ConfigError, "password authentication failed.*user and password into the URL"),
        (wrong.replace("tester", "nobody"), ConfigError, "user and password into the URL"),
        (none, ConfigError, 'database "none" does not exist; make it with createdb'),
        (f"postgresql://tester:secret@127.0.0.1:{closed}/postgres", LinkUnavailable, "is the server running"),
        ("postgresql://[", ConfigError, "write it like postgresql://user"),
    ]
    for url, error, message in cases:
        with pytest.raises(error, match=message) as caught:
            Journal(url, "run")
        assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_a_user_that_may_make_no_schema_is_told(database: str) -> None:
    with _postgres.connect(database) as db:
        db.execute("CREATE ROLE guest LOGIN PASSWORD 'guest'")
        db.execute("REVOKE CREATE ON DATABASE postgres FROM PUBLIC")
    with pytest.raises(ConfigError, match=r"permission denied.*let the user create schemas"):
        Journal(database.replace(f"tester:{throwaway.PASSWORD}", "guest:guest"), "run")


def test_a_server_that_goes_away_is_told(database: str) -> None:
    journal = Journal(database, "run")
    with _postgres.connect(database) as db:
        db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    with pytest.raises(DataError, match=r"tester:\*\*\*@127.0.0.1.* schema tierline_"):
        journal.settle(A, [])
    journal.close()
    remove_journal(database, "run")


def test_a_run_whose_journals_stand_in_a_database_goes_on_from_there(database: str, tmp_path: Path) -> None:
    def rules() -> dict[NodeId, Rule]:
        return federation("fedavg", 2, {})

    nodes = tuple(rules())
    trainers = {me: Quadratic(np.full(4, 0.5 + i), np.arange(4.0), noise=0.1) for i, me in enumerate(nodes)}
    x = Params.from_arrays({"w": np.zeros(4, np.float32)})
    star = catalog.make("topology", "star")
    run = Linked(rules, trainers, star, x, tmp_path, [nodes[:1], nodes[1:]], database=database)
    for rounds in (2, 5):
        asyncio.run(asyncio.wait_for(run.run(rounds), 30))
    memory = Memory(rules(), trainers, star, x, lr=lambda round: run.lr)
    memory.run(5)
    journal = Journal(database, "job", name="0")
    found = journal.saved(nodes[0])
    journal.close()
    for index in range(2):
        remove_journal(database, str(index))
    assert found is not None and found.round == 5
    assert np.array_equal(found.state["x"], memory.states()[nodes[0]]["x"])


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://tl:secret@db/tl",
        "postgresql://tl:se/cret@db/tl",
        "postgresql://tl:se@cret@db/tl",
        "postgresql://tl@db/tl?password=secret&sslmode=require",
    ],
)
def test_a_password_is_never_shown(url: str) -> None:
    shown = _postgres.shown(url)
    assert "cret" not in shown and "***" in shown and shown.startswith("postgresql://tl")


@pytest.mark.parametrize("url", ["postgresql://tl:se%zzcret@127.0.0.1:1/tl", "postgresql://tl:secr@et@127.0.0.1:1/tl"])
def test_what_a_driver_says_of_a_url_does_not_show_its_password(url: str) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises((ConfigError, LinkUnavailable)) as caught:
        _postgres.connect(url)
    assert "secr" not in str(caught.value) and "cret" not in str(caught.value) and "'et" not in str(caught.value)
