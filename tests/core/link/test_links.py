"""Real channels on loopback: joining, talking, losing and finding each other again."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
from tests.support.links import (
    EXCHANGE,
    FILE,
    Child,
    Desk,
    child,
    ended,
    free_port,
    mode,
    opening,
    parent,
    refusal,
    relay,
    run,
    until,
)

from tierline.core import errors
from tierline.core.link.fleet import Hello, Order
from tierline.core.link.messages import Mode


def test_join_fetch_exchange_and_heartbeats() -> None:
    async def main() -> None:
        desk = Desk()
        async with parent(desk=desk) as listener, child("a", listener.address) as a:
            a.want = "f1"
            await until(lambda: a.changes[:1] == [True] and desk.up == ["a"])
            assert a.fetched == [FILE]
            for n in range(50):
                assert a.link.post(mode(n))
                assert listener.links["a"].post(mode(100 + n))
            await until(lambda: len(a.bodies) == len(desk.bodies) == 50)
            assert desk.bodies == [("a", mode(n)) for n in range(50)]
            assert a.bodies == [mode(100 + n) for n in range(50)]
            await until(lambda: desk.beats)
            assert desk.beats[0].node == "a"
            listener.push(Order("knobs", b"plan 2"))
            await until(lambda: a.plans == [b"plan 2"])
            counters = listener.links["a"].counters
            assert counters.received_payload_bytes == 0 and counters.received_framing_bytes > 50 * 14
            assert a.link.rtt_ns > 0

    run(main)


def test_a_child_is_told_what_is_learned_and_learns_beside_its_samples() -> None:
    async def main() -> None:
        desk = Desk()
        desk.heartbeat_s, desk.learned = 0.02, b"job 1"
        async with parent(desk=desk) as listener:
            async with child("a", listener.address) as a:
                await until(lambda: a.jobs == [b"job 1"])
                desk.learned = b"job 2"
                await until(lambda: a.jobs == [b"job 1", b"job 2"])
                heard = len(desk.beats)
                await until(lambda: len(desk.beats) > heard + 2)
                assert a.jobs == [b"job 1", b"job 2"]  # once each
                assert a.beside == [listener.address]
            assert a.beside == [listener.address, "over"]

    run(main)


def test_a_parent_that_ends_and_starts_again() -> None:
    async def main() -> None:
        port, first, second = free_port(), Desk(), Desk()
        async with parent(f"127.0.0.1:{port}", first) as one:
            a = Child("a", one.address)
            await until(lambda: first.up == ["a"])
            a.link.post(mode(1), keep=True)
            await until(lambda: first.bodies)
        await until(lambda: a.changes[:2] == [True, False])
        assert not a.link.post(mode(2)), "not kept, so not taken"
        a.link.post(mode(3), keep=True)
        a.link.post(mode(4), keep=True)
        async with parent(f"127.0.0.1:{port}", second) as two:
            await until(lambda: len(second.bodies) >= 2)
            a.link.post(mode(5))
            await until(lambda: ("a", mode(5)) in second.bodies)
            numbers = [body.level for _, body in second.bodies if isinstance(body, Mode)]
            assert numbers in ([3, 4, 5], [1, 3, 4, 5]), "kept frames once, in order"
            two.links["a"].post(mode(6))
            await until(lambda: a.bodies == [mode(6)])
        assert a.changes[:3] == [True, False, True]
        await a.stop()

    run(main)


def test_an_abrupt_loss_is_no_end_even_while_writing() -> None:
    """A relay in between cuts the connection under full traffic, again and again."""

    async def main() -> None:
        desk = Desk()
        async with parent(desk=desk) as listener, relay(listener.address) as (address, cut), child("a", address) as a:
            for n in range(5):
                await until(lambda n=n: len(desk.up) > n and a.link.is_up and listener.links["a"].is_up, f"up {n}")
                for k in range(300):
                    a.link.post(mode(k))
                    listener.links["a"].post(mode(k))
                await asyncio.sleep(0)
                cut()
                for k in range(300):
                    a.link.post(mode(k))
                await until(lambda n=n: len(desk.down) > n and a.changes.count(False) > n, f"down {n}")
                assert not a.task.done()
            await until(lambda: a.link.is_up)

    run(main)


def test_a_child_that_restarts_supersedes_itself() -> None:
    async def main() -> None:
        desk = Desk()
        async with parent(desk=desk) as listener, child("a", listener.address) as old:
            await until(lambda: desk.up == ["a"])
            async with child("a", listener.address) as new:
                await until(lambda: new.link.is_up)
                error = await ended(old)
                assert isinstance(error, errors.PeerRejected) and "'a'" in str(error)
                new.link.post(mode(7))
                await until(lambda: ("a", mode(7)) in desk.bodies)
                listener.links["a"].post(mode(8))
                await until(lambda: new.bodies == [mode(8)])
                assert old.bodies == [] and listener.links["a"].is_up

    run(main)


def test_of_several_streams_the_last_is_served() -> None:
    async def main() -> None:
        desk = Desk()
        async with parent(desk=desk) as listener, grpc.aio.insecure_channel(listener.address) as channel:
            listener.join(Hello("a", "device", 1, (), "", (), ""))
            calls: list[Any] = []
            for epoch in range(1, 4):
                calls.append(channel.stream_stream(EXCHANGE)())
                await calls[-1].write(opening("a", epoch))
                assert await calls[-1].read() is not grpc.aio.EOF
            for call in calls[:2]:
                assert await refusal(call) == (grpc.StatusCode.FAILED_PRECONDITION, "rejected")
            listener.links["a"].post(mode(1))
            assert await calls[2].read() is not grpc.aio.EOF
            calls[2].cancel()

    run(main)
