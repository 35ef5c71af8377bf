"""Pre-adding on the way: of the parts of one sum that come through here, one goes on. No I/O.

Parts are added when all of the group that comes through here is there, so that whatever is lost and sent again adds up
to the same part; who waits longer than HOLD_S for the others goes on alone. What the receiver will not take pre-added
goes to it piece by piece, so that it declines the one that is wrong; what says more than its members may goes alone
at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tierline.core.errors import TierlineError
from tierline.core.link.content_wire import content_from_rope, content_to_rope, who_adds
from tierline.core.link.letters import Content, Head, Letter, Note, Part, Settled
from tierline.core.types import NodeId
from tierline.learning.driver._gather import check_size
from tierline.learning.fixed import WeightedSum

HOLD_S = 1.0
"""A part waits so long for those it could be added to: a sum may close without the slow."""
_MAX_HELD = 64
"""Sums; what is known about older ones is forgotten, and their parts go on alone."""

_Name = tuple[str, str, int, str, NodeId]


@dataclass(slots=True)
class _Held:
    """Letters of one sum by sender; `sent` are those that went on as one."""

    letters: dict[NodeId, Letter] = field(default_factory=dict)
    members: dict[NodeId, tuple[NodeId, ...]] = field(default_factory=dict)
    """Whose parts each sender's letter holds."""
    sent: dict[NodeId, Letter] = field(default_factory=dict)
    apart: bool = False
    """Parts go on one by one."""


class PreAdder:
    """`through(receiver)` are the nodes whose letters to it come through here."""

    def __init__(self, through: Callable[[NodeId], frozenset[NodeId]], max_weight: float = math.inf) -> None:
        self._through, self._max_weight = through, max_weight
        self._held: dict[_Name, _Held] = {}
        self._sums: dict[tuple[NodeId, int], _Name] = {}
        """By sender and number of the letter that stands for several."""

    def goes_alone(self, letter: Letter) -> bool:
        """Nothing that comes through here could be added to this part."""
        try:
            _, group = who_adds(letter.content)
        except TierlineError:
            return True  # for its receiver to decline
        return len(self._through(letter.head.receiver).intersection(group)) < 2

    def take(self, letter: Letter) -> list[Letter]:
        """What goes on, now that this part is here: nothing, one for several, or the letter itself."""
        if self.goes_alone(letter):
            return [letter]
        try:
            part = content_from_rope(letter.content).part
        except TierlineError:
            return [letter]
        if part is None or not self._is_fair(part):
            return [letter]
        through = self._through(letter.head.receiver)
        held = self._held.setdefault(_name(letter.head), _Held())
        if held.apart:
            return [letter]
        held.letters[letter.head.sender] = letter
        held.members[letter.head.sender] = part.members
        while len(self._held) > _MAX_HELD:
            del self._held[next(iter(self._held))]
        here = [member for sender in held.letters for member in held.members[sender]]
        if not through.intersection(part.group) <= set(here):
            return []
        if len(here) > len(set(here)):  # some were sent apart before
            return self.release(letter.head)
        return self._join(letter.head, held, part)

    def release(self, head: Head) -> list[Letter]:
        """The part of `head` has waited for HOLD_S: what goes on alone."""
        held = self._held.get(_name(head))
        if held is None or head.sender not in held.letters:
            return []
        held.apart = True
        letters, held.letters = [held.letters[sender] for sender in sorted(held.letters)], {}
        return letters

    def note(self, note: Note) -> tuple[list[Note], list[Letter]]:
        """What to tell those whose parts went on as one, and what to send apart."""
        seqs = note.seqs if isinstance(note, Settled) else (note.seq,)
        names = {seq: self._sums.pop((note.sender, seq)) for seq in seqs if (note.sender, seq) in self._sums}
        notes: list[Note] = []
        letters: list[Letter] = []
        if isinstance(note, Settled):
            for name in names.values():
                held = self._held.pop(name, _Held())
                notes += [
                    Settled(note.run, sender, note.receiver, (sent.head.seq,)) for sender, sent in held.sent.items()
                ]
            others = tuple(seq for seq in seqs if seq not in names)
            return ([*notes, replace(note, seqs=others)] if others else notes), letters
        if not names:
            return [note], letters
        for name in names.values():
            held = self._held.get(name, _Held())
            held.apart = True
            letters += [held.sent[sender] for sender in sorted(held.sent)]
        return notes, letters

    def _is_fair(self, part: Part) -> bool:
        """A lie could not be told any more in a sum with honest parts."""
        try:
            check_size(part, len(part.group), self._max_weight, "")
        except TierlineError:
            return False
        return True

    def _join(self, head: Head, held: _Held, like: Part) -> list[Letter]:
        letters = [held.letters[sender] for sender in sorted(held.letters)]
        total: WeightedSum | None = None
        members: list[NodeId] = []
        for letter in letters:
            part = content_from_rope(letter.content).part
            assert part is not None
            own = WeightedSum(part.integers, part.weight_units, part.fraction_bits)
            if own.integers.shape != like.integers.shape or own.fraction_bits != like.fraction_bits:
                held.apart = True
                return letters
            total = own if total is None else total + own
            members += part.members
        assert total is not None
        part = Part(total.integers, total.weight_units, total.fraction_bits, tuple(sorted(members)), like.group)
        held.sent, held.letters = held.letters, {}
        self._sums[letters[0].head.sender, letters[0].head.seq] = _name(head)
        return [Letter(letters[0].head, content_to_rope(Content(part=part), str(head)))]


def _name(head: Head) -> _Name:
    return head.run, head.step, head.round, head.tag, head.receiver
