"""Letters that come in at once: little memory, and each comes out as it was sent."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tierline.core import errors
from tierline.core.clock import ManualClock
from tierline.core.link.attach import Attachment, is_of
from tierline.core.link.intake import FREE_BYTES, Arriving, Intake
from tierline.core.link.learning_wire import parcel_to_wire
from tierline.core.link.letters import Head, Letter, Note, Piece
from tierline.core.types import NodeId

LONG = FREE_BYTES - 1
HEAD = Head("job", NodeId("a"), NodeId("b"), 7, "turn", 3, "x", "part")


class Desk:
    """Keeps letters."""

    max_letter_bytes = 2 * FREE_BYTES
    speaks_for = staticmethod(is_of)

    def __init__(self, folder: Path) -> None:
        self.letters: list[Letter] = []
        self.intake = Intake(folder)

    def attached(self, stream: Attachment) -> None: ...

    def detached(self, stream: Attachment) -> None: ...

    def present(self, stream: Attachment, before: frozenset[NodeId]) -> None: ...

    def letter(self, stream: Attachment, letter: Letter) -> None:
        self.letters.append(letter)

    def note(self, stream: Attachment, note: Note) -> None: ...


def fill(arriving: Arriving, pieces: list[bytes]) -> bytes:
    for piece in pieces:
        arriving.append(memoryview(piece))
    assert arriving.num_missing == 0
    return arriving.take()


def test_two_long_letters_and_short_ones_are_in_memory_and_the_rest_in_files(tmp_path: Path) -> None:
    intake = Intake(tmp_path / "not-there-yet")
    letters = [intake.open(LONG) for _ in range(5)]
    assert [letter.in_memory for letter in letters] == [True, True, False, False, False]
    assert intake.num_bytes == 2 * LONG
    letters[0].close()
    letters[0].close()
    letters += [intake.open(LONG), intake.open(1)]
    assert [letter.in_memory for letter in letters[5:]] == [True, False]
    for letter in letters:
        letter.close()
    assert intake.num_bytes == 0
    assert all(short.in_memory for short in map(Intake().open, [FREE_BYTES // 100] * 100))


@pytest.mark.parametrize("num_before", [0, 2])
def test_what_comes_out_is_what_came_in_and_leaves_nothing(num_before: int, tmp_path: Path) -> None:
    intake = Intake(tmp_path)
    before = [intake.open(LONG) for _ in range(num_before)]
    arriving = intake.open(9)
    assert arriving.in_memory is (num_before == 0)
    assert fill(arriving, [b"abc", b"", b"defg", b"hi"]) == b"abcdefghi"
    assert intake.num_bytes == num_before * LONG
    for letter in before:
        letter.close()
    assert (intake.num_bytes, list(tmp_path.iterdir())) == (0, [])


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    intake = Intake(tmp_path / "file")
    assert [intake.open(LONG).in_memory for _ in range(2)] == [True, True]
    with pytest.raises(errors.DataError, match="no file for a letter of 16777215 bytes"):
        intake.open(LONG)


def test_streams_that_send_at_once_share_one_intake(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    streams = [Attachment(desk, ManualClock(), is_child=True) for _ in range(4)]
    content = bytes(range(251)) * (FREE_BYTES // 251)
    for start in (0, len(content) // 2):
        for stream in streams:
            piece = content[start : start + len(content) // 2] if start == 0 else content[start:]
            stream.take(parcel_to_wire(Piece((piece,), HEAD if start == 0 else None, len(content))))
            assert desk.intake.num_bytes <= 2 * len(content)
    assert desk.letters == [Letter(HEAD, (content,))] * 4
    assert desk.intake.num_bytes == 0


def test_one_letter_is_worked_on_at_a_time() -> None:
    async def run() -> list[int]:
        intake, taken = Intake(), []

        async def stream(me: int) -> None:
            await intake.room()
            taken.append(me)
            intake.hold()

        streams = [asyncio.ensure_future(stream(me)) for me in range(5)]
        seen = []
        for _ in range(4):
            for _ in range(5):
                await asyncio.sleep(0)
            seen.append(len(taken))
            intake.release()
        await asyncio.gather(*streams)
        assert len(taken) == 5
        return seen

    assert asyncio.run(run()) == [1, 2, 3, 4]
