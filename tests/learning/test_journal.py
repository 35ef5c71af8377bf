"""What is long stands in files beside the journal, which are written over."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from tierline.core.errors import ConfigError, DataError
from tierline.core.link.letters import Head, Letter
from tierline.core.types import NodeId
from tierline.learning.driver._slots import Slots, read_slot
from tierline.learning.driver._state import state_from_bytes, state_to_parts
from tierline.learning.driver.journal import Journal, JournalReader, Saved

A, B = NodeId("a"), NodeId("b")
LONG = 20_000  # float64 values: longer than what stands in the database itself


def saved(round: int, value: float, num_values: int = LONG) -> Saved:
    return Saved(round, 0, round + 1, {"x": np.full(num_values, value), "round": round}, {("w", B): (round, 0)})


def head(seq: int) -> Head:
    return Head("run", A, B, seq, "turn", 0, "w", "message", None)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "j.sqlite-long").iterdir())


def test_states_of_any_shape_come_back() -> None:
    state = {
        "flat": np.arange(5, dtype=np.float32),
        "matrix": np.arange(6, dtype=np.int64).reshape(2, 3).T,
        "none": np.zeros((0, 3), np.uint8),
        "flag": np.array([True, False]),
        "scalar": np.float32(0.1),
        "count": 2**60,
        "far": float("inf"),
    }
    found = state_from_bytes(b"".join(state_to_parts(state)))
    assert list(found) == list(state)
    for name, value in state.items():
        assert np.array_equal(found[name], value) and np.asarray(found[name]).shape == np.asarray(value).shape
    assert found["matrix"].dtype == np.int64 and found["matrix"].flags.writeable
    assert type(found["count"]) is int and type(found["scalar"]) is float


@pytest.mark.parametrize("num_values", [3, LONG])
def test_a_journal_opened_again_knows_states_and_letters(tmp_path: Path, num_values: int) -> None:
    path, body = tmp_path / "j.sqlite", bytes(range(256)) * num_values
    journal = Journal(path, "run")
    for round in range(3):
        journal.commit(A, saved(round, round, num_values), (), None)
    written = [Letter(head(1), (body,)), Letter(head(2), (body,)), Letter(head(3), (b"",))]
    journal.write(written)
    journal.close()
    again = Journal(path, "run")
    assert again.letters(A) == written
    found = again.saved(A)
    assert found is not None and found.round == 2 and found.cursors == {("w", B): (2, 0)}
    assert np.array_equal(found.state["x"], np.full(num_values, 2.0))
    again.settle(A, [1, 2])
    assert [letter.head.seq for letter in again.letters(A)] == [3]
    again.close()
    reader = JournalReader(path)
    assert np.array_equal(reader.states()[A]["x"], found.state["x"])
    reader.close()


def test_files_are_written_over(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.sqlite", "run")
    for round in range(10):
        journal.commit(A, saved(round, 1.0), (), None)
        journal.write([Letter(head(round), (bytes(90_000),))])
        journal.settle(A, [round])
    journal.close()
    assert files(tmp_path) == ["0", "1"]


def test_what_was_never_committed_is_not_there_and_takes_no_room(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    journal = Journal(path, "run")
    journal.write([Letter(head(1), (bytes(90_000),))])
    with pytest.raises(sqlite3.IntegrityError):
        journal.write([Letter(head(2), (bytes(99_000),)), Letter(head(1), (b"",))])
    assert [letter.head.seq for letter in journal.letters(A)] == [1]
    journal.write([Letter(head(3), (bytes(99_000),))])
    journal.close()
    assert files(tmp_path) == ["0", "1"]
    (tmp_path / "j.sqlite-long" / "2").write_bytes(bytes(50))  # of a process that was killed before its commit
    again = Journal(path, "run")
    again.write([Letter(head(4), (bytes(98_000),))])
    assert files(tmp_path) == ["0", "1", "2"]
    assert [letter.num_bytes for letter in again.letters(A)] == [90_000, 99_000, 98_000]


def test_a_file_that_was_written_over_or_cut_is_told(tmp_path: Path) -> None:
    slots = Slots(tmp_path, ())
    first = slots.write([b"some", memoryview(b" words")])
    assert read_slot(tmp_path, first) == b"some words"
    slots.free([first])
    second = slots.write([b"other words"])
    assert second.number == first.number and read_slot(tmp_path, second) == b"other words"
    with pytest.raises(DataError, match="not what the journal beside it speaks of; remove both"):
        read_slot(tmp_path, first)
    with (tmp_path / str(second.number)).open("r+b") as file:
        file.truncate(12)
    with pytest.raises(DataError, match="remove both"):
        read_slot(tmp_path, second)


def test_a_journal_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    Journal(path, "run").close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE journal SET schema = 1")
    db.close()
    with pytest.raises(ConfigError, match="schema 1, this version writes schema 2; remove it"):
        Journal(path, "run")
