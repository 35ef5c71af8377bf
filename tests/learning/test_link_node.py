"""One node of the link driver by itself: what it refuses by name, what it remembers, what it says again."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from tests.support.quadratics import Quadratic

from tierline.core import catalog
from tierline.core.arrays import Params
from tierline.core.errors import ConfigError, NodeFailed
from tierline.core.link.content_wire import content_from_rope, content_to_rope
from tierline.core.link.letters import Content, Declined, Head, Letter, LetterKind, Note, Part, Settled
from tierline.core.types import Array, NodeId
from tierline.learning.cast import federation, peers
from tierline.learning.driver._compute import ask
from tierline.learning.driver._near import phases
from tierline.learning.driver.journal import Journal, JournalReader
from tierline.learning.driver.link import LinkNode, Task
from tierline.learning.effects import Effects, collect, exchange, fit, tell
from tierline.learning.fixed import contribution
from tierline.learning.half import Half
from tierline.learning.rule import Rule, Turn

X = Params.from_arrays({"w": np.arange(4, dtype=np.float32)})
SERVER, W0, W1, W2 = (NodeId(name) for name in ("server", "worker-0", "worker-1", "worker-2"))


class Bench:
    """A node, and what it hands out; `restart` is what a kill and a new process are."""

    def __init__(self, me: NodeId, rules: Callable[[], Mapping[NodeId, Rule]], topology: str, folder: Path) -> None:
        self.me, self._rules, self._folder = me, rules, folder
        near = phases(catalog.make("topology", topology), tuple(rules()))
        self._task = Task("job", "run", near, lambda round: 0.1, max_weight=100.0)
        self.seqs: dict[NodeId, int] = {}
        self.restart()

    def restart(self) -> None:
        self.letters: list[Letter] = []
        self.notes: list[Note] = []
        self.journal = Journal(self._folder / "node.sqlite", "job")
        trainer = Quadratic(np.ones(4), np.zeros(4))
        self.node = LinkNode(self.me, self._rules()[self.me], trainer, X, self._task, self.journal)
        self.node.post, self.node.tell = self.letters.append, self.notes.append

    def compute(self) -> None:
        while self.node.compute is not None and self.node.trainer is not None:
            self.node.computed(ask(self.node.trainer, self.node.compute), 0)

    def send(
        self,
        sender: NodeId,
        content: Content,
        *,
        tag: str = "fitted",
        kind: LetterKind = "part",
        round: int = 0,
        now_ns: int = 0,
    ) -> int:
        seq = self.seqs[sender] = self.seqs.get(sender, 0) + 1
        head = Head("job", sender, self.me, seq, "turn", round, tag, kind)
        self.node.letter(Letter(head, content_to_rope(content, "test")), now_ns)
        return seq

    def declined(self) -> list[tuple[NodeId, str, str]]:
        return [(note.sender, note.code, note.message) for note in self.notes if isinstance(note, Declined)]


def part(value: Array, member: NodeId, *, weight: float = 1.0, bits: int = 32) -> Content:
    params = Params.from_arrays({"w": value.astype(np.float32)})
    own = contribution(params, weight=weight, num_members=3, fraction_bits=bits)
    return Content(part=Part(own.integers, own.weight_units, own.fraction_bits, (member,)))


def x_of(bench: Bench) -> list[float]:
    saved = bench.journal.saved(bench.me)
    assert saved is not None
    return np.asarray(saved.state["x"]).tolist()  # type: ignore[no-any-return]


def fedavg() -> Mapping[NodeId, Rule]:
    return federation("fedavg", 3, {"quorum": 2})


@pytest.fixture
def server(tmp_path: Path) -> Bench:
    bench = Bench(SERVER, fedavg, "star", tmp_path)
    bench.node.begin(0)
    return bench


HUGE = Content(part=Part(np.full(4, 2**62), 2**32, 32, (W0,)))
NOBODY = Content(part=Part(np.zeros(4, np.int64), 2**32, 32, (NodeId("stranger"),)))
BAD = [
    (part(np.ones(5), W0), "shape_mismatch", r"int64\[5\] with 32 fraction bits, expected int64\[4\]"),
    (part(np.ones(4), W0, bits=20), "shape_mismatch", "with 20 fraction bits"),
    (part(np.ones(4), W0, weight=101.0), "bad_frame", "a weight of 101 for 1, at most 100 each"),
    (HUGE, "bad_frame", "could overflow"),
    (NOBODY, "bad_frame", "a part of stranger, who take no part"),
    (Content({"x": np.ones(4, np.float32)}), "bad_frame", "holds no part of a sum"),
]


@pytest.mark.parametrize(("content", "code", "message"), BAD)
@pytest.mark.parametrize("early", [False, True])
def test_a_bad_update_is_declined_and_the_round_goes_on(
    content: Content, code: str, message: str, early: bool, tmp_path: Path
) -> None:
    bench = Bench(SERVER, fedavg, "star", tmp_path)
    if early:
        bench.send(W0, content)
        bench.node.begin(0)
    else:
        bench.node.begin(0)
        bench.send(W0, content)
    ((sender, declined_code, text),) = bench.declined()
    assert (sender, declined_code) == (W0, code)
    assert re.search(message, text), text
    bench.send(W1, part(np.full(4, 2.0), W1))
    bench.send(W2, part(np.full(4, 4.0), W2))
    assert bench.node.round == 1
    assert x_of(bench) == [3.0] * 4


def test_a_late_update_is_dropped_and_settled(server: Bench) -> None:
    server.send(W1, part(np.ones(4), W1))
    server.send(W2, part(np.ones(4), W2))
    assert server.node.round == 1
    server.notes.clear()
    seq = server.send(W0, part(np.full(4, 9.0), W0))
    assert server.notes == [Settled("job", W0, SERVER, (seq,))]
    assert x_of(server) == [1.0] * 4


def test_no_update_counts_twice(server: Bench) -> None:
    first = part(np.ones(4), W0).part
    assert first is not None
    server.send(W0, Content(part=first))
    server.send(W0, Content(part=first))
    both = Content(part=Part(2 * first.integers, 2 * first.weight_units, 32, (W0, W1)))
    server.send(W1, both)
    assert server.declined()[0][2] == "sum 'fitted': worker-0 would count twice"
    assert server.node.round == 0
    pre_added = Content(part=Part(3 * first.integers, 2 * first.weight_units, 32, (W1, W2)))
    server.send(W1, pre_added)
    assert server.node.round == 1
    assert x_of(server) == [np.float32(4 / 3)] * 4


def test_values_that_are_not_finite_and_strangers_are_declined(tmp_path: Path) -> None:
    bench = Bench(W0, lambda: peers("d_psgd", 4, {"within_s": 1.0}), "ring", tmp_path)
    bench.node.begin(0)
    bench.compute()
    bench.send(W1, Content({"x": np.array([1, np.nan, 0, 0], np.float32)}), tag="x", kind="message")
    bench.send(W2, Content({"x": np.ones(4, np.float32)}), tag="x", kind="message")
    assert [(sender, code) for sender, code, _ in bench.declined()] == [(W1, "bad_frame"), (W2, "rejected")]
    assert "'x' holds values that are not finite" in bench.declined()[0][2]
    assert bench.node.deadline_ns == 1_000_000_000
    bench.node.tick(1_000_000_000)
    assert bench.node.round == 1


def test_a_node_whose_letter_is_declined_fails_by_name(server: Bench) -> None:
    letter = server.letters[0]
    declined = Declined("job", SERVER, letter.head.receiver, letter.head.seq, "bad_frame", "no good")
    with pytest.raises(
        NodeFailed, match=r"server: message 'model' of turn 0 for worker-0: declined: bad_frame: no good"
    ):
        server.node.note(declined)


class Quorum(Half):
    """Collects from one, then computes, then tells everyone."""

    kept = ("x",)

    def turn(self, t: Turn) -> Effects[None]:
        got = yield from collect("fitted", self.x, t.workers, [t.server], quorum=1)
        heard = yield from exchange("word", {}, t.workers, quorum=1)
        fitted = yield from fit(got.mean, t.job)
        self.x = fitted.values
        yield from tell("told", t.workers, {"x": self.x.flat, "who": sum(map(len, heard))})


def quorum_rules() -> Mapping[NodeId, Rule]:
    return {SERVER: Quorum(), W0: Half(), W1: Half(), W2: Half()}  # type: ignore[dict-item]


def test_a_turn_taken_again_hears_whom_it_heard(tmp_path: Path) -> None:
    bench = Bench(SERVER, quorum_rules, "star", tmp_path)
    word = Content({"w": np.ones(2, np.float32)}, {"n": 3, "f": 0.5})
    bench.node.begin(0)
    bench.send(W1, part(np.full(4, 5.0), W1))
    bench.send(W2, word, tag="word", kind="message")
    assert bench.node.compute is not None
    bench.restart()  # before the turn is done: nothing is settled, all is sent again, in another order
    bench.node.begin(0)
    bench.send(W0, part(np.full(4, 7.0), W0))
    bench.send(W0, word, tag="word", kind="message")
    assert bench.node.compute is None
    bench.send(W1, part(np.full(4, 5.0), W1))
    assert bench.node.compute is None
    bench.send(W2, word, tag="word", kind="message")
    bench.compute()
    assert bench.node.round == 1
    reader = JournalReader(tmp_path / "node.sqlite")
    assert reader.participants() == {(SERVER, "turn", 0, 0): {W1}, (SERVER, "turn", 0, 1): {W2}}
    assert {note.sender for note in bench.notes} == {W0, W1, W2}


def test_letters_are_sent_again_word_for_word_until_settled(tmp_path: Path) -> None:
    bench = Bench(SERVER, fedavg, "star", tmp_path)
    bench.node.begin(0)
    sent = bench.letters
    assert [letter.head.receiver for letter in sent] == [W0, W1, W2]
    assert sent[0].content is sent[1].content
    bench.restart()
    assert list(bench.node.unsettled.values()) == sent
    bench.node.begin(0)
    assert bench.letters == []  # they are on their way already
    bench.node.note(Settled("job", SERVER, W1, (sent[1].head.seq, sent[2].head.seq)))
    assert list(bench.node.unsettled) == [sent[0].head.seq, sent[2].head.seq]  # each for its receiver only
    bench.send(W1, part(np.ones(4), W1))
    bench.send(W2, part(np.ones(4), W2))
    bench.restart()
    assert list(bench.node.unsettled) == [sent[0].head.seq, sent[2].head.seq]
    bench.node.begin(0)
    assert [letter.head.seq for letter in bench.letters] == [4, 5, 6]  # numbers are not used again
    assert content_from_rope(bench.letters[0].content).arrays["x"].tolist() == [1.0] * 4


def test_a_node_without_its_journal_goes_on_where_the_others_are(tmp_path: Path) -> None:
    bench = Bench(W0, fedavg, "star", tmp_path)
    model = Content({"x": np.ones(4, np.float32)})
    bench.node.begin(0)
    bench.send(SERVER, model, tag="model", kind="message", round=6)
    assert bench.node.compute is not None and bench.node.round == 6
    bench.compute()
    (sent,) = bench.letters
    assert (bench.node.round, sent.head.round, sent.head.seq) == (7, 6, 6 << 20)
    bench.node.begin(0)  # from now on it has a journal, and waits
    bench.send(SERVER, model, tag="model", kind="message", round=9)
    assert bench.node.compute is None and bench.node.round == 7


def test_letters_that_came_before_the_first_turn_tell_where_the_others_are(tmp_path: Path) -> None:
    bench = Bench(W0, fedavg, "star", tmp_path)
    bench.send(SERVER, Content({"x": np.ones(4, np.float32)}), tag="model", kind="message", round=3)
    bench.node.begin(0)
    assert bench.node.compute is not None and bench.node.round == 3


def test_a_node_that_should_remember_something_cannot_go_on_without_its_journal(tmp_path: Path) -> None:
    bench = Bench(W0, lambda: federation("scaffold", 3, {}), "star", tmp_path)
    bench.node.begin(0)
    content = Content({"x": np.ones(4, np.float32), "x0": np.ones(4, np.float32)})
    with pytest.raises(NodeFailed, match="worker-0: the others are in turn 2 and need what this node remembered"):
        bench.send(SERVER, content, tag="model", kind="message", round=2)


def test_a_journal_belongs_to_one_run(tmp_path: Path) -> None:
    Journal(tmp_path / "a.sqlite", "one").close()
    with pytest.raises(ConfigError, match="the journal of run 'one', not of 'two'; remove it"):
        Journal(tmp_path / "a.sqlite", "two")
