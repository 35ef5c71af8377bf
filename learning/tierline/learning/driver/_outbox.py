"""Letters of one node on their way: posted and journalled at once, and kept until their receivers need them no more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from tierline.core.errors import NodeFailed
from tierline.core.link.content_wire import content_to_rope
from tierline.core.link.fields import Rope
from tierline.core.link.letters import Content, Declined, Head, Letter, LetterKind, Note
from tierline.core.types import NodeId
from tierline.learning.driver._peer import Mark, Step
from tierline.learning.driver._scribe import AtOnce, Scribe
from tierline.learning.driver.journal import Journal

_Key = tuple[Step, str, LetterKind, NodeId, Mark | None]


class Outbox:
    """What `me` writes in one run. `post` takes each letter that leaves; nobody may have the whole of it before `kept`
    takes it too."""

    def __init__(
        self,
        run: str,
        me: NodeId,
        journal: Journal,
        next_seq: int,
        post: Callable[[Letter], None],
        kept: Callable[[Letter], None],
    ) -> None:
        self._run, self._me, self._journal, self._post, self._kept = run, me, journal, post, kept
        self.scribe: Scribe = AtOnce(journal)
        self.unsettled: dict[int, Letter] = {letter.head.seq: letter for letter in journal.letters(me)}
        """Letters to be sent again to receivers that come back."""
        self.next_seq = max([next_seq, *(seq + 1 for seq in self.unsettled)])
        self._written: set[_Key] = {_key(letter.head) for letter in self.unsettled.values()}
        self.settled: list[int] = []
        """Not yet written down as such."""

    def send(
        self, step: Step, kind: LetterKind, tag: str, letters: Sequence[tuple[NodeId, Content, Mark | None]]
    ) -> None:
        """Journal and post; what an earlier attempt of this turn has written is on its way already."""
        where = f"{self._me}: {kind} {tag!r}"
        bodies: dict[int, Rope] = {}
        new: list[Letter] = []
        for receiver, content, mark in letters:
            head = Head(self._run, self._me, receiver, self.next_seq, *step, tag, kind, mark)
            if _key(head) not in self._written:
                self.next_seq += 1
                if id(content) not in bodies:
                    bodies[id(content)] = content_to_rope(content, where)
                new.append(Letter(head, bodies[id(content)], is_kept=False))
        if not new:
            return
        for letter in new:
            self.unsettled[letter.head.seq] = letter
            self._written.add(_key(letter.head))
            self._post(letter)
        self.scribe.write(partial(self._journal.write, new), partial(self._keep, new))

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
        settled, self.settled = self.settled, []
        self.scribe.write(lambda: self._journal.settle(self._me, settled), lambda: None)

    def committed(self) -> None:
        """The turn is finished, and will not be taken again."""
        self.settled = []
        self._written.clear()

    def _keep(self, letters: Sequence[Letter]) -> None:
        for letter in letters:
            letter.is_kept = True
            self._kept(letter)

    def _forget(self, seq: int) -> None:
        del self.unsettled[seq]
        self.settled.append(seq)


def _key(head: Head) -> _Key:
    return (head.step, head.round), head.tag, head.kind, head.receiver, head.mark
