"""Real channels on loopback: who may not join, and what may not be said."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
import pytest
from tests.support.links import Desk, child, code_of, ended, mode, opening, parent, refusal, run, stream, until

from tierline.core import errors
from tierline.core.link.fleet import Hello
from tierline.core.link.messages import CaptureNow, Frame, Pull
from tierline.core.types import NodeId, SampleId
from tierline.core.wire import frame_to_wire
from tierline.v1 import fleet_pb2, fleet_pb2_grpc


@pytest.mark.parametrize(
    ("name", "hello", "kind", "says"),
    [
        ("stranger", {}, errors.PeerRejected, "stranger"),
        ("a", {"bundle_digest": "d2"}, errors.DigestMismatch, "Bundle d2, this is d1"),
    ],
)
def test_a_parent_refuses_for_good(
    name: str, hello: dict[str, Any], kind: type[errors.TierlineError], says: str
) -> None:
    async def main() -> None:
        async with parent() as listener, child(name, listener.address, **hello) as refused:
            error = await ended(refused)
            assert type(error) is kind and says in str(error)
            assert listener.links == {}

    run(main)


@pytest.mark.parametrize(("low", "high"), [(2, 9), (0, 0)])
def test_no_common_protocol(low: int, high: int) -> None:
    async def main() -> None:
        async with parent() as listener, grpc.aio.insecure_channel(listener.address) as channel:
            fleet = fleet_pb2_grpc.FleetStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await fleet.Join(fleet_pb2.Hello(node="a", protocol_min=low, protocol_max=high))
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert code_of(caught.value) == "rejected"
            assert f"{low} to {high}" in (caught.value.details() or "")

    run(main)


def test_a_node_that_did_not_join() -> None:
    async def main() -> None:
        async with parent() as listener, stream(listener.address, opening("a", 1)) as call:
            assert await refusal(call) == (grpc.StatusCode.FAILED_PRECONDITION, "rejected")

    run(main)


BAD = [
    ("no frame", b"\xff\xff\xff"),
    ("not Open", frame_to_wire(Frame(1, 0, mode(1))).SerializeToString()),
    ("nothing", b""),
]


@pytest.mark.parametrize(("what", "first"), BAD)
def test_a_first_frame_that_is_not_open(what: str, first: bytes) -> None:
    async def main() -> None:
        async with parent() as listener, stream(listener.address, first) as call:
            assert await refusal(call) == (grpc.StatusCode.INVALID_ARGUMENT, "bad_frame"), what

    run(main)


def frames_that_break_a_stream() -> list[tuple[str, bytes]]:
    twice = frame_to_wire(Frame(1, 0, Pull(0, "x", [SampleId(NodeId("p"), 1, 1)])))
    twice.pull.ids.origin.append("q")
    infinite = frame_to_wire(Frame(1, 0, CaptureNow([SampleId(NodeId("p"), 1, 1)], float("inf"))))
    return [
        ("no frame", b"\xff\xff\xff"),
        ("a gap", frame_to_wire(Frame(5, 0, mode(1))).SerializeToString()),
        ("an acknowledgement of nothing", frame_to_wire(Frame(0, 9)).SerializeToString()),
        ("columns", twice.SerializeToString()),
        ("no time", infinite.SerializeToString()),
    ]


@pytest.mark.parametrize(("what", "bad"), frames_that_break_a_stream())
def test_a_bad_frame_ends_only_its_own_link(what: str, bad: bytes) -> None:
    async def main() -> None:
        desk = Desk()
        async with parent(desk=desk) as listener, child("b", listener.address) as b:
            listener.join(Hello("a", "device", 1, (), "", (), ""))
            await until(lambda: b.link.is_up)
            async with stream(listener.address, opening("a", 1)) as call:
                assert await call.read() is not grpc.aio.EOF
                await call.write(bad)
                assert await refusal(call) == (grpc.StatusCode.INVALID_ARGUMENT, "bad_frame"), what
            b.link.post(mode(1))
            await until(lambda: desk.bodies == [("b", mode(1))])
            assert desk.down == ["a"] and b.changes == [True]
            async with stream(listener.address, opening("a", 2)) as call:
                assert await call.read() is not grpc.aio.EOF
                await call.write(frame_to_wire(Frame(1, 0, mode(2))).SerializeToString())
                await until(lambda: ("a", mode(2)) in desk.bodies, "the sender may come back")

    run(main)


def test_a_bad_frame_of_the_parent_does_not_end_the_child() -> None:
    async def main() -> None:
        desk = Desk()
        async with parent(desk=desk) as listener, child("a", listener.address) as a:
            await until(lambda: a.link.is_up)
            listener.links["a"]._session._next_seq = 77
            listener.links["a"].post(mode(1))
            await until(lambda: a.changes[:3] == [True, False, True])
            assert "77" in a.dialler.last_error
            listener.links["a"].post(mode(2))
            await until(lambda: a.bodies == [mode(2)])

    run(main)
