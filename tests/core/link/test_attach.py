"""Streams of letters: pieces, pacing, identities, and what a peer must not do."""

from __future__ import annotations

import asyncio
from collections import deque

import grpc
import grpc.aio
import numpy as np
import pytest

from tierline.core import errors
from tierline.core.clock import ManualClock, MonotonicClock
from tierline.core.link.attach import ATTACH, Attachment, attach, is_of, learning_handler
from tierline.core.link.intake import Intake
from tierline.core.link.learning_wire import content_from_bytes, content_to_bytes, parcel_from_wire, parcel_to_wire
from tierline.core.link.letters import (
    Content,
    Declined,
    Head,
    Letter,
    Note,
    Parcel,
    Part,
    Piece,
    Present,
    Received,
    Settled,
)
from tierline.core.link.pace import MAX_WINDOW, MIN_WINDOW, Pacer
from tierline.core.types import NodeId
from tierline.v1 import learning_pb2 as pb

A, B = NodeId("a"), NodeId("b")
HEAD = Head("job", A, B, 7, "turn", 3, "x", "part", (3, 1))


class Desk:
    """Keeps what arrives."""

    max_letter_bytes = 1 << 20
    speaks_for = staticmethod(is_of)

    def __init__(self) -> None:
        self.letters: list[Letter] = []
        self.notes: list[Note] = []
        self.came = asyncio.Event()
        self.intake = Intake()

    def attached(self, stream: Attachment) -> None:
        stream.tell(Present((B,)))

    def detached(self, stream: Attachment) -> None: ...

    def present(self, stream: Attachment, before: frozenset[NodeId]) -> None: ...

    def letter(self, stream: Attachment, letter: Letter) -> None:
        self.letters.append(letter)
        self.came.set()

    def note(self, stream: Attachment, note: Note) -> None:
        self.notes.append(note)


PARCELS: list[Parcel] = [
    Present((A, B), "job"),
    Piece(b"abc", HEAD, 3),
    Piece(b"abc"),
    Received(12),
    Settled("job", A, B, (1, 2)),
    Declined("job", A, B, 4, "bad_frame", "no"),
]


@pytest.mark.parametrize("parcel", PARCELS)
def test_parcels_come_back_as_they_were(parcel: Parcel) -> None:
    assert parcel_from_wire(parcel_to_wire(parcel)) == parcel


def test_contents_come_back_as_they_were() -> None:
    arrays = {
        name: np.arange(6).reshape(2, 3).astype(name)
        for name in ("float32", "float16", "int8", "uint8", "int32", "int64", "bool")
    }
    part = Part(np.array([-(2**60), 5], np.int64), 3 << 70, 40, (A, B))
    found = content_from_bytes(content_to_bytes(Content(arrays, {"n": -3, "f": 0.1, "one": 1.0}, part), "test"))
    assert {name: (a.dtype, a.tolist()) for name, a in found.arrays.items()} == {
        name: (a.dtype, a.tolist()) for name, a in arrays.items()
    }
    assert found.numbers == {"n": -3, "f": 0.1, "one": 1.0} and isinstance(found.numbers["one"], float)
    assert found.part is not None and found.part.integers.tolist() == [-(2**60), 5]
    assert (found.part.weight_units, found.part.fraction_bits, found.part.members) == (3 << 70, 40, (A, B))


def test_what_the_wire_does_not_carry_is_named() -> None:
    with pytest.raises(errors.ShapeMismatch, match="letter: 'x': raw: takes a batch"):
        content_to_bytes(Content({"x": np.zeros(2, np.float64)}), "letter")
    with pytest.raises(errors.ShapeMismatch, match="letter: the whole number 'n' does not fit"):
        content_to_bytes(Content(numbers={"n": 2**63}), "letter")


def hostile(**fields: object) -> bytes:
    content = pb.Content()
    named = content.tensors.add(name="x")
    named.tensor.codec, named.tensor.dtype = "raw", "float32"
    named.tensor.shape.append(1)
    named.tensor.data = b"\0\0\0\0"
    named.tensor.crc32 = 0x2144DF1C
    for key, value in fields.items():
        if key == "shape":
            del named.tensor.shape[:]
            named.tensor.shape.extend(value)  # type: ignore[arg-type]
        else:
            setattr(named.tensor, key, value)
    return content.SerializeToString()


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (hostile(shape=[1 << 31, 1 << 31]), errors.BadFrame),
        (hostile(shape=[]), errors.BadFrame),
        (hostile(shape=[2]), errors.BadFrame),
        (hostile(crc32=1), errors.CorruptPayload),
        (hostile(codec="no_such"), errors.UnknownCodec),
        (hostile(dtype="float31"), errors.BadFrame),
        (hostile(dtype="object"), errors.TierlineError),
        (b"\xff\xff", errors.BadFrame),
        (pb.Content(sum=pb.Sum(members=["a"])).SerializeToString(), errors.BadFrame),
    ],
)
def test_hostile_contents_are_refused(raw: bytes, error: type[Exception]) -> None:
    assert content_from_bytes(hostile()).arrays["x"].tolist() == [0.0]
    with pytest.raises(error):
        content_from_bytes(raw)


@pytest.mark.parametrize(
    ("parcels", "message"),
    [
        ([Piece(b"abc")], "belongs to no letter"),
        ([Piece(b"abc", HEAD, 2)], "belongs to no letter"),
        ([Piece(b"abc", HEAD, 5), Piece(b"abc", HEAD, 5)], "begins before the end of another letter"),
        ([Piece(b"abc", HEAD, 2 << 20)], "2097152 bytes, at most 1048576 are taken"),
        ([Received(1)], "acknowledges 1 bytes that were not sent"),
    ],
)
def test_a_peer_that_breaks_the_rules_is_refused(parcels: list[Parcel], message: str) -> None:
    desk = Desk()
    stream = Attachment(desk, ManualClock(), is_child=True)
    with pytest.raises(errors.BadFrame, match=message):
        for parcel in parcels:
            stream.take(parcel_to_wire(parcel))
    assert desk.letters == []


def test_a_half_sent_letter_is_no_letter() -> None:
    desk = Desk()
    Attachment(desk, ManualClock(), is_child=True).take(parcel_to_wire(Piece(b"abc", HEAD, 6)))
    again = Attachment(desk, ManualClock(), is_child=True)
    for piece in (Piece(b"abc", HEAD, 6), Piece(b"def")):
        assert desk.letters == []
        again.take(parcel_to_wire(piece))
    assert desk.letters == [Letter(HEAD, b"abcdef")]


def test_a_certificate_speaks_for_its_own_nodes_only() -> None:
    stream = Attachment(Desk(), ManualClock(), is_child=True, identity="a")
    stream.take(parcel_to_wire(Present((A, NodeId("a/1")))))
    with pytest.raises(errors.SecurityError, match="the certificate belongs to a, not to 'ab'"):
        stream.take(parcel_to_wire(Present((NodeId("ab"),))))


def test_another_protocol_is_refused() -> None:
    raw = pb.Parcel(present=pb.Present(protocol=9, nodes=["a"])).SerializeToString()
    with pytest.raises(errors.PeerRejected, match="protocol 9, this node with 1"):
        parcel_from_wire(raw)


def test_letters_of_all_sizes_cross_a_real_stream() -> None:
    letters = [Letter(Head("job", A, B, n, "turn", 0, "x"), bytes([n % 251]) * size) for n, size in enumerate(SIZES)]

    async def cross() -> tuple[Desk, Pacer]:
        desk, clock = Desk(), MonotonicClock()
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((learning_handler(lambda run: desk, clock),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.stream_stream(ATTACH)()
            stream = Attachment(Desk(), clock, is_child=False)
            for letter in letters:
                stream.post(letter)

            async def read() -> bytes | None:
                raw = await call.read()
                return None if raw is grpc.aio.EOF else bytes(raw)

            serving = asyncio.create_task(stream.serve(read, call.write))
            while len(desk.letters) < len(letters):
                await desk.came.wait()
                desk.came.clear()
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
        await server.stop(None)
        return desk, stream.pacer

    desk, pacer = asyncio.run(asyncio.wait_for(cross(), 20))
    assert desk.letters == letters
    assert MIN_WINDOW <= pacer.window_bytes <= MAX_WINDOW and pacer.rate_bps > 0


def test_a_stream_ends_when_its_caller_is_not_let_in_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierline.core.link.attach.HEARTBEAT_S", 0.02)
    runs: list[str] = []
    revoked: list[str] = []

    class Child(Desk):
        def attached(self, stream: Attachment) -> None:
            stream.tell(Present((A,), "job 3"))

        def present(self, stream: Attachment, before: frozenset[NodeId]) -> None:
            up.set()

    def desk_of(run: str) -> Desk:
        runs.append(run)
        return Desk()

    def check(context: object) -> None:
        if revoked:
            raise errors.SecurityError("a was revoked")

    up = asyncio.Event()

    async def cross() -> None:
        clock = MonotonicClock()
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((learning_handler(desk_of, clock, check),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stream = Attachment(Child(), clock, is_child=False)
            attaching = asyncio.create_task(attach(channel, "parent", stream))
            await up.wait()
            revoked.append("a")
            with pytest.raises(errors.SecurityError, match="a was revoked"):
                await attaching
        await server.stop(None)

    asyncio.run(asyncio.wait_for(cross(), 20))
    assert runs == ["job 3"]


SIZES = (0, 1, 5000, 1 << 20, 0, 16 << 10, 300_000)


@pytest.mark.parametrize(("mbit", "rtt_ms"), [(20.0, 20.0), (1000.0, 20.0), (2.0, 100.0), (100.0, 50.0)])
def test_bulk_fills_a_link_without_filling_its_queue(mbit: float, rtt_ms: float) -> None:
    """A link of one queue: half a round trip, then a piece takes its length to leave; its answer the other half."""
    pacer, now, free, sent = Pacer(), 0, 0.0, 0
    answers: deque[tuple[int, int]] = deque()
    waits: list[tuple[int, float]] = []
    ns_per_byte, half_ns, end_ns = 8e3 / mbit, rtt_ms * 5e5, 12e9
    while now < end_ns:
        size = pacer.room(now)
        if size:
            pacer.sent(size, now)
            sent += size
            begins = max(now + half_ns, free)
            waits.append((now, begins - now - half_ns))
            free = begins + size * ns_per_byte
            answers.append((int(free + half_ns), sent))
        else:
            now, total = answers.popleft()
            assert pacer.received(total, now)
    assert sent * 8e3 / end_ns > 0.93 * mbit
    # Nineteen of twenty wait for less than a quarter of the round trip; the rest after it has been measured anew.
    late = sorted(wait for when, wait in waits if when > 1e9)
    assert late[int(0.95 * len(late))] < 0.25 * rtt_ms * 1e6
    assert not pacer.received(sent + 1, now)


def test_a_short_message_now_and_then_does_not_shrink_the_window() -> None:
    pacer, now, sent = Pacer(), 0, 0
    for _ in range(40):  # bulk: as much as there is room for, answered after 10 ms
        while size := pacer.room(now):
            pacer.sent(size, now)
            sent += size
        now += 10_000_000
        assert pacer.received(sent, now)
    window = pacer.window_bytes
    for _ in range(40):
        pacer.sent(100, now)
        sent += 100
        now += 10_000_000
        assert pacer.received(sent, now)
    assert pacer.window_bytes == window
