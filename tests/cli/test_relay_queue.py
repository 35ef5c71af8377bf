"""The emulated link in virtual time: what arrives when, what stalls, how much fits."""

import math

import pytest

from tierline.cli.relay.profile import LinkProfile, parse_link
from tierline.cli.relay.queue import ShapedQueue
from tierline.core.errors import ConfigError

MBIT_8 = LinkProfile(rtt_ms=20, mbit=8)  # one byte per microsecond, 10 ms one way


def drain(queue: ShapedQueue[str]) -> list[tuple[float, str, bytes]]:
    """(arrival, target, bytes) of everything queued, by walking from one due time to the next."""
    arrivals = []
    while (at_s := queue.next_due_s()) < math.inf:
        assert queue.due(at_s - 1e-9) == []
        arrivals += [(at_s, target, data) for target, data in queue.due(at_s)]
    return arrivals


def test_a_packet_takes_its_bytes_over_the_rate_plus_half_the_round_trip() -> None:
    queue: ShapedQueue[str] = ShapedQueue(MBIT_8)
    queue.enqueue("a", bytes(1000), now_s=5.0)
    ((at_s, target, data),) = drain(queue)
    assert (target, len(data)) == ("a", 1000)
    assert at_s == pytest.approx(5.0 + 0.001 + 0.010)


def test_connections_wait_for_each_other_in_one_queue_in_order() -> None:
    queue: ShapedQueue[str] = ShapedQueue(MBIT_8)
    bulk = bytes(range(250)) * 200
    queue.enqueue("bulk", bulk, now_s=0.0)
    queue.enqueue("ping", b"x", now_s=0.0)
    queue.enqueue("bulk", b"", now_s=0.0)
    arrivals = drain(queue)
    assert b"".join(data for _, target, data in arrivals if target == "bulk") == bulk
    assert [target for _, target, _ in arrivals][-2:] == ["ping", "bulk"]
    assert arrivals[-2][0] == pytest.approx(0.050001 + 0.010)
    assert arrivals[-1][2] == b"", "the end of a stream keeps its place"
    assert [at for at, _, _ in arrivals] == sorted(at for at, _, _ in arrivals)


def test_the_bound_counts_what_waits_and_not_what_travels() -> None:
    queue: ShapedQueue[str] = ShapedQueue(LinkProfile(rtt_ms=20, mbit=8, queue_bytes=10_000))
    assert queue.enqueue("a", bytes(9_000), now_s=0.0)
    assert not queue.enqueue("a", bytes(3_000), now_s=0.0)
    assert queue.backlog_bytes(0.0) == 12_000
    room_s = queue.room_at_s(0.0)
    assert 0.0045 <= room_s <= 0.0045 + 0.00146
    assert queue.backlog_bytes(room_s) <= 7_500
    assert queue.backlog_bytes(0.012) == 0
    assert len(queue.due(0.0099)) == 0, "sent, but still travelling"
    assert queue.enqueue("a", b"x", now_s=0.013)


def test_the_default_bound_is_never_below_what_keeps_the_link_busy() -> None:
    assert parse_link("3g").capacity_bytes == 64 * 1024
    assert parse_link("lte").capacity_bytes == pytest.approx(2 * 5.85e6 / 8 * 0.050, abs=1)
    assert parse_link("lan").capacity_bytes == 1_250_000


def test_stalls_hold_the_queue_for_a_retransmission_time() -> None:
    profile = LinkProfile(rtt_ms=20, mbit=8, stall_share=0.05)
    queue: ShapedQueue[str] = ShapedQueue(profile, seed=3)
    for _ in range(4000):
        queue.enqueue("a", bytes(1000), now_s=0.0)
    assert queue.num_stalls == pytest.approx(200, abs=40)
    arrivals = drain(queue)
    assert arrivals[-1][0] == pytest.approx(4.0 + 0.010 + queue.num_stalls * 0.2)
    assert profile.stall_s == 0.2
    assert LinkProfile(rtt_ms=400, mbit=1).stall_s == pytest.approx(0.6)


def test_the_seed_decides_which_packets_stall() -> None:
    def run(seed: int) -> list[float]:
        queue: ShapedQueue[str] = ShapedQueue(LinkProfile(rtt_ms=1, mbit=8, stall_share=0.1), seed)
        for _ in range(100):
            queue.enqueue("a", bytes(100), now_s=0.0)
        return [at for at, _, _ in drain(queue)]

    assert run(1) == run(1) != run(2)


def test_a_changed_link_keeps_the_order() -> None:
    queue: ShapedQueue[str] = ShapedQueue(LinkProfile(rtt_ms=1000, mbit=8))
    queue.enqueue("slow", b"1", now_s=0.0)
    queue.profile = LinkProfile(rtt_ms=0, mbit=8)
    queue.enqueue("fast", b"2", now_s=0.1)
    assert [target for _, target, _ in drain(queue)] == ["slow", "fast"]


def test_a_cut_loses_everything_and_the_link_is_free_again() -> None:
    queue: ShapedQueue[str] = ShapedQueue(MBIT_8)
    queue.enqueue("a", bytes(100_000), now_s=0.0)
    queue.clear()
    assert queue.next_due_s() == math.inf
    assert queue.backlog_bytes(0.0) == 0
    queue.enqueue("a", b"x", now_s=0.001)
    assert drain(queue)[0][0] == pytest.approx(0.011001)


@pytest.mark.parametrize(
    "link",
    [
        "rtt_ms=50,mbit=5.85,stall_share=0.01",
        "{rtt_ms=50, mbit=5.85, stall_share=0.01}",
        "lte,stall_share=0.01",
        {"rtt_ms": 50, "mbit": 5.85, "stall_share": 0.01},
    ],
)
def test_a_link_is_given_by_name_or_inline(link: str) -> None:
    assert parse_link(link) == LinkProfile(rtt_ms=50, mbit=5.85, stall_share=0.01)


@pytest.mark.parametrize(
    ("link", "message"),
    [
        ("ltee", 'nearest is "lte"'),
        ("rtt=50,mbit=1", 'nearest is "rtt_ms"'),
        ("rtt_ms=50", "mbit missing"),
        ("lte,fast", "not of the form key=number"),
        ("rtt_ms=abc,mbit=1", "is no number"),
        ("rtt_ms=1,mbit=0", "mbit = 0"),
        ("rtt_ms=1,mbit=1,stall_share=1", "stall_share = 1"),
        ("rtt_ms=nan,mbit=1", "is no number"),
        ({"rtt_ms": "50", "mbit": 1}, "is no number"),
        ("", "no such link"),
    ],
)
def test_a_bad_link_says_what_is_wrong(link: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_link(link)
