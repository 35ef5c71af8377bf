"""Letters of one node on their way: journalled, then posted, and kept until their receivers need them no more."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tierline.core.errors import NodeFailed
from tierline.core.link.content_wire import content_to_bytes
from tierline.core.link.letters import Content, Declined, Head, Letter, LetterKind, Note
from tierline.core.types import NodeId
from tierline.learning.driver._peer import Mark, Step
from tierline.learning.driver.journal import Journal

_Key = tuple[Step, str, LetterKind, NodeId, Mark | None]


class Outbox:
    """What `me` writes in one run. `post` takes each letter that leaves."""

    def __init__(self, run: str, me: NodeId, journal: Journal, next_seq: int, post: Callable[[Letter], None]) -> None:
        self._run, self._me, self._journal, self._post = run, me, journal, post
        self.unsettled: dict[int, Letter] = {letter.head.seq: letter for letter in journal.letters(me)}
        """Letters to be sent again to receivers that come back."""
        self.next_seq = max([next_seq, *(seq + 1 for seq in self.unsettled)])
        self._written: set[_Key] = {_key(letter.head) for letter in self.unsettled.values()}
        self.settled: list[int] = []
        """Not yet written down as such."""

    def send(
        self, step: Step, kind: LetterKind, tag: str, letters: Sequence[tuple[NodeId, Content, Mark | None]]
    ) -> None:
        """Journal, then post; what an earlier attempt of this turn has written is on its way already."""
        groups: dict[int, tuple[Content, list[Head]]] = {}
        for receiver, content, mark in letters:
            head = Head(self._run, self._me, receiver, self.next_seq, *step, tag, kind, mark)
            if _key(head) not in self._written:
                self.next_seq += 1
                groups.setdefault(id(content), (content, []))[1].append(head)
        if not groups:
            return
        where = f"{self._me}: {kind} {tag!r}"
        for letter in self._journal.write([(content_to_bytes(c, where), heads) for c, heads in groups.values()]):
            self.unsettled[letter.head.seq] = letter
            self._written.add(_key(letter.head))
            self._post(letter)

    def note(self, note: Note) -> None:
        """What became of letters. Raises NodeFailed where one was declined."""
        if isinstance(note, Declined):
            letter = self.unsettled.get(note.seq)
            if letter is None or letter.head.receiver != note.receiver:
                return
            self._forget(note.seq)
            raise NodeFailed(f"{letter.head}: declined: {note.code}: {note.message}")
        for seq in note.seqs:
            if seq in self.unsettled and self.unsettled[seq].head.receiver == note.receiver:
                self._forget(seq)

    def flush(self) -> None:
        """Write down which letters are settled; a commit does it anyway."""
        self._journal.settle(self._me, self.settled)
        self.settled.clear()

    def committed(self) -> None:
        """The turn is finished, and will not be taken again."""
        self.settled.clear()
        self._written.clear()

    def _forget(self, seq: int) -> None:
        del self.unsettled[seq]
        self.settled.append(seq)


def _key(head: Head) -> _Key:
    return (head.step, head.round), head.tag, head.kind, head.receiver, head.mark
