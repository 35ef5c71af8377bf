"""The rate of a link, read off the samples on it: in virtual time, over the emulator's own queue."""

from __future__ import annotations

import random
from collections import deque

import pytest

from tierline.cli.relay.profile import NAMED, LinkProfile
from tierline.cli.relay.queue import ShapedQueue
from tierline.core.link.rate import ENOUGH_NS, WINDOW_NS, RateMeter

WITHIN = 0.15
STEP_S = 0.0005


class World:
    """A sender that keeps some messages in flight, an emulated link, and a peer that acknowledges after its work."""

    def __init__(self, profile: LinkProfile, *, work_s: float = 0.0, ack_every: int = 1) -> None:
        self.meter, self.now_s = RateMeter(), 1.0
        self.profile, self.work_s, self.ack_every = profile, work_s, ack_every
        self._queue: ShapedQueue[int] = ShapedQueue(profile)
        self._left: dict[int, int] = {}
        self._acks: deque[tuple[float, int]] = deque()
        self._seq = self._acked = 0
        self._random = random.Random(5)

    @property
    def in_flight(self) -> int:
        return self._seq - self._acked

    def send(self, num_bytes: int) -> None:
        self._seq += 1
        self._left[self._seq] = num_bytes
        self.meter.sent(self._seq, num_bytes, int(self.now_s * 1e9))
        self._queue.enqueue(self._seq, bytes(num_bytes), self.now_s)

    def step(self) -> None:
        self.now_s += STEP_S
        for seq, piece in self._queue.due(self.now_s):
            self._left[seq] -= len(piece)
            if self._left[seq] == 0 and seq % self.ack_every == 0:
                self._acks.append((self.now_s + self.work_s + self.profile.delay_s, seq))
        while self._acks and self._acks[0][0] <= self.now_s:
            self._acked = self._acks.popleft()[1]
            self.meter.acknowledged(self._acked, int(self.now_s * 1e9))

    def run(self, seconds: float, most: int, sizes: tuple[int, int], gap_s: float = 0.0) -> None:
        """Send whenever fewer than `most` are in flight, and the last was `gap_s` ago."""
        until_s, last_s = self.now_s + seconds, 0.0
        while self.now_s < until_s:
            while self.in_flight < most and self.now_s - last_s >= gap_s:
                last_s = self.now_s
                self.send(self._random.randint(*sizes))
            self.step()

    def bps(self) -> tuple[float, float]:
        return self.meter.bps(int(self.now_s * 1e9))


@pytest.mark.parametrize("name", ["lte", "3g", "wifi"])
@pytest.mark.parametrize(("work_s", "ack_every"), [(0.0, 1), (0.02, 1), (0.005, 4)])
def test_samples_that_fill_a_link_tell_its_rate(name: str, work_s: float, ack_every: int) -> None:
    world = World(NAMED[name], work_s=work_s, ack_every=ack_every)
    world.run(5.0, 32, (4_000, 20_000))
    found, over_s = world.bps()
    assert found == pytest.approx(NAMED[name].mbit * 1e6, rel=WITHIN)
    assert over_s > ENOUGH_NS / 1e9


@pytest.mark.parametrize(("most", "gap_s"), [(1, 0.0), (2, 0.2), (100, 0.1)])
def test_samples_that_leave_gaps_tell_nothing(most: int, gap_s: float) -> None:
    world = World(NAMED["lte"])
    world.run(5.0, most, (4_000, 20_000), gap_s)
    assert world.bps() == (0.0, 0.0)


def test_a_rate_that_changes_is_followed_within_the_window() -> None:
    world = World(NAMED["lte"])
    world.run(5.0, 32, (4_000, 20_000))
    world._queue.profile = NAMED["3g"]
    world.run(WINDOW_NS / 1e9 + 3, 32, (4_000, 20_000))
    assert world.bps()[0] == pytest.approx(1.1e6, rel=WITHIN)


def test_a_rate_is_forgotten_when_nothing_confirms_it() -> None:
    world = World(NAMED["wifi"])
    world.run(3.0, 32, (4_000, 20_000))
    assert world.bps()[0]
    world.now_s += WINDOW_NS / 1e9 + 1
    assert world.bps() == (0.0, 0.0)


def test_a_new_connection_starts_without_what_was_under_way() -> None:
    meter = RateMeter()
    for seq in range(1, 9):
        meter.sent(seq, 20_000, 1_000)
    assert meter.waits
    meter.reset()
    assert not meter.waits
    meter.acknowledged(8, 10_000_000_000)
    assert meter.bps(10_000_000_000) == (0.0, 0.0)
