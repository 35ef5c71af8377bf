"""A conversation that outlives its connections, on paper: no sockets, no time."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tierline.core.errors import BadFrame
from tierline.core.link.messages import Body, Frame, Mode, Open
from tierline.core.link.session import ACK_EVERY, Session


def body(n: int) -> Mode:
    return Mode(n, False)


def pair() -> tuple[Session, Session]:
    a, b = Session("a", 11), Session("b", 22)
    connect(a, b)
    return a, b


def connect(a: Session, b: Session) -> tuple[list[Frame], list[Frame]]:
    """Both sides say Open; what each sends again."""
    from_a, from_b = a.opening(), b.opening()
    return a.opened(from_b), b.opened(from_a)


def test_numbers_count_from_one_and_acknowledgements_ride_along() -> None:
    a, b = pair()
    first, second = a.post(body(1), 0), a.post(body(2), 0)
    assert [(f.seq, f.ack) for f in (first, second)] == [(1, 0), (2, 0)]
    assert [b.receive(f, 0) for f in (first, second)] == [body(1), body(2)]
    reply = b.post(body(3), 0)
    assert (reply.seq, reply.ack) == (1, 2)
    assert len(a._posted) == 2
    a.receive(reply, 0)
    assert not a._posted


def test_round_trip_is_smoothed() -> None:
    a, _ = pair()
    a.post(body(1), 1000)
    a.receive(Frame(0, 1), 9000)
    assert a.rtt_ns == 8000
    a.post(body(2), 10_000)
    a.receive(Frame(0, 2), 10_000 + 16_000)
    assert a.rtt_ns == (7 * 8000 + 16_000) // 8


def test_duplicates_are_delivered_once_and_gaps_are_errors() -> None:
    a, b = pair()
    frames = [a.post(body(n), 0) for n in range(4)]
    assert b.receive(frames[0], 0) == body(0)
    assert b.receive(frames[0], 0) is None
    with pytest.raises(BadFrame, match="frame 3 after 1: 1 missing"):
        b.receive(frames[2], 0)
    assert b.receive(frames[1], 0) == body(1)
    assert b.received == 2


def test_acknowledging_what_was_never_sent_is_an_error() -> None:
    a, _ = pair()
    a.post(body(1), 0)
    with pytest.raises(BadFrame, match="2"):
        a.receive(Frame(0, 2), 0)
    with pytest.raises(BadFrame, match="7"):
        a.opened(Open("b", 22, 11, 7))


def test_a_bare_acknowledgement_after_enough_frames() -> None:
    a, b = pair()
    for n in range(ACK_EVERY):
        assert b.acknowledgement() is None
        b.receive(a.post(body(n), 0), 0)
    ack = b.acknowledgement()
    assert ack == Frame(0, ACK_EVERY)
    assert b.acknowledgement() is None
    assert a.receive(ack, 0) is None and not a._posted


def test_kept_frames_are_sent_again_in_order_and_others_never() -> None:
    a, b = pair()
    kept = [a.post(body(n), 0, keep=n % 2 == 0) for n in range(6)]
    b.receive(kept[0], 0)
    again, _ = connect(a, b)
    assert [f.body for f in again] == [body(2), body(4)]
    assert [b.receive(f, 0) for f in again] == [body(2), body(4)]
    later = a.post(body(9), 0)
    assert b.receive(later, 0) == body(9)
    assert connect(a, b) == ([], [])
    assert not a._posted


def test_what_arrived_before_the_loss_is_not_sent_again() -> None:
    a, b = pair()
    for n in range(3):
        b.receive(a.post(body(n), 0, keep=True), 0)
    assert connect(a, b) == ([], [])


def test_a_peer_that_restarted_gets_kept_frames_from_one() -> None:
    a, b = pair()
    for n in range(3):
        b.receive(a.post(body(n), 0, keep=n != 1), 0)
    a.receive(Frame(0, 1), 0)
    fresh = Session("b", 33)
    again, _ = connect(a, fresh)
    assert [(f.seq, f.body) for f in again] == [(1, body(2))]
    assert fresh.receive(again[0], 0) == body(2)
    reply = fresh.post(body(5), 0)
    assert reply.seq == 1 and a.receive(reply, 0) == body(5)


def test_posting_while_away() -> None:
    a, b = Session("a", 1), Session("b", 2)
    a.post(body(1), 0, keep=True)
    a.post(body(2), 0)
    again, _ = connect(a, b)
    assert [(f.seq, f.body) for f in again] == [(1, body(1))]


class Lossy(RuleBasedStateMachine):
    """Two sessions over a pipe that delays, breaks at any place and comes back; either side may restart."""

    def __init__(self) -> None:
        super().__init__()
        self.epoch = 1
        self.sessions = [Session("a", 1), Session("b", 1)]
        self.pipes: list[deque[Frame]] = [deque(), deque()]
        """pipes[i]: frames that side i has sent and the other has not read."""
        self.is_up = False
        self.counter = 0
        self.kept: list[list[Body]] = [[], []]
        """Kept bodies of each side's process, in order."""
        self.volatile: list[set[int]] = [set(), set()]
        self.delivered: list[list[Body]] = [[], []]
        """What each side's process has received of the peer's process."""

    @rule(side=st.integers(0, 1), keep=st.booleans())
    def post(self, side: int, keep: bool) -> None:
        if not self.is_up and not keep:
            return
        self.counter += 1
        message = body(self.counter)
        frame = self.sessions[side].post(message, 0, keep=keep)
        if keep:
            self.kept[side].append(message)
        if self.is_up:
            self.pipes[side].append(frame)

    @precondition(lambda self: self.is_up)
    @rule(side=st.integers(0, 1), twice=st.booleans())
    def read(self, side: int, twice: bool) -> None:
        other = self.sessions[1 - side]
        if self.pipes[side]:
            frame = self.pipes[side].popleft()
            got = other.receive(frame, 0)
            if got is not None:
                self.delivered[1 - side].append(got)
            if twice:
                assert other.receive(frame, 0) is None
        ack = other.acknowledgement()
        if ack is not None:
            self.pipes[1 - side].append(ack)

    @rule()
    def cut(self) -> None:
        self.is_up = False
        for pipe in self.pipes:
            pipe.clear()

    @rule(lost=st.integers(0, 2))
    def reconnect(self, lost: int) -> None:
        """`lost`: how many of the two Open frames do not arrive."""
        self.cut()
        a, b = self.sessions
        from_a = a.opening()
        if lost == 2:
            return
        # As the listener does it: say Open, then take the peer's.
        from_b = b.opening()
        self.pipes[1].extend(b.opened(from_a))
        if lost == 1:
            self.pipes[1].clear()
            return
        self.pipes[0].extend(a.opened(from_b))
        self.is_up = True

    @rule(side=st.integers(0, 1))
    def restart(self, side: int) -> None:
        self.cut()
        self.epoch += 1
        self.sessions[side] = Session("ab"[side], self.epoch)
        self.kept[side] = []
        # The peer's process delivers to a new one, and hears from a new one.
        self.delivered = [[], []]
        # What the other side kept and was not acknowledged goes to the new process; the rest was the old one's.
        other = self.sessions[1 - side]
        self.kept[1 - side] = [posted.body for posted in other._posted if posted.keep]

    @rule()
    def settle(self) -> None:
        """A connection that holds long enough delivers every kept frame."""
        self.reconnect(0)
        while any(self.pipes):
            for side in (0, 1):
                while self.pipes[side]:
                    self.read(side, False)
        for side in (0, 1):
            got = [x for x in self.delivered[1 - side] if x in self.kept[side]]
            assert got == self.kept[side]

    @invariant()
    def kept_frames_arrive_once_and_in_order(self) -> None:
        for side in (0, 1):
            got = self.delivered[1 - side]
            assert len(got) == len({repr(x) for x in got}), "delivered twice"
            numbers = [x.level for x in got if isinstance(x, Mode)]
            assert numbers == sorted(numbers), "out of order"
            kept = [x for x in got if x in self.kept[side]]
            assert kept == self.kept[side][: len(kept)], "a kept frame was skipped"


TestLossy = Lossy.TestCase
TestLossy.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True, database=None)


def test_a_peer_that_falls_behind_is_noticed() -> None:
    a, _ = pair()

    def round_trip(seq: int, ns: int) -> None:
        a.post(body(seq), 0)
        a.receive(Frame(0, seq), ns)

    for seq in range(1, 5):
        round_trip(seq, 1000)
    a.post(body(5), 0)
    a.post(body(6), 0)
    assert not a.is_congested, "two frames on an idle link"
    a.receive(Frame(0, 6), 40_000)
    assert not a.is_congested, "slow, but nothing is on its way"
    a.post(body(7), 0)
    a.post(body(8), 0)
    assert a.is_congested
