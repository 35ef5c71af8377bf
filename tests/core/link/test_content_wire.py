"""Long fields in and out of messages: what protobuf's own parser reads, without its copies."""

from __future__ import annotations

import numpy as np
import pytest

from tierline.core.errors import BadFrame
from tierline.core.link.content_wire import content_from_rope, content_to_rope, who_adds
from tierline.core.link.fields import between, cut, field, whole
from tierline.core.link.letters import Content, Part
from tierline.core.types import NodeId
from tierline.v1 import learning_pb2 as pb

A, B = NodeId("a"), NodeId("b")
RNG = np.random.default_rng(4)


def part(num_values: int) -> Part:
    return Part(RNG.integers(-(2**60), 2**60, num_values), 7, 32, (A,), (A, B))


@pytest.mark.parametrize("num_values", [3, 100, 20_000])
def test_values_lie_where_they_can_be_used(num_values: int) -> None:
    """In place and aligned from some length on, whatever stands before them; and protobuf reads the same."""
    arrays = {name: RNG.normal(size=num_values).astype(np.float32) for name in ("a", "bcd", "ef")}
    raw = b"".join(content_to_rope(Content(arrays, {"n": 3}, part(num_values)), "test"))
    place = np.frombuffer(raw, np.uint8)
    found = content_from_rope((raw,))
    assert found.part is not None
    for name, array in {**found.arrays, "sum": found.part.integers}.items():
        assert array.flags.aligned
        assert np.shares_memory(array, place) or num_values < 20_000, name
        assert not np.shares_memory(array, place) or not array.flags.writeable
    assert all(np.array_equal(found.arrays[name], array) for name, array in arrays.items())
    parsed = pb.Content.FromString(raw)
    assert [named.name for named in parsed.tensors] == [*arrays, "sum"]
    assert parsed.tensors[0].tensor.data == arrays["a"].tobytes()


def test_a_part_of_a_sum_is_sent_from_where_it_was_made() -> None:
    made = part(20_000)
    rope = content_to_rope(Content(part=made), "test")
    assert any(np.shares_memory(np.frombuffer(piece, np.uint8), made.integers) for piece in rope)
    assert who_adds(rope) == who_adds((whole(rope),)) == ((A,), (A, B))
    x = np.ones(20_000, np.float32)  # its owner may go on writing to it
    rope = content_to_rope(Content({"x": x}), "test")
    assert not any(np.shares_memory(np.frombuffer(piece, np.uint8), x) for piece in rope)


def test_ropes_are_cut_anywhere() -> None:
    rope = (b"abc", b"", memoryview(b"defgh"), b"i")
    for start in range(10):
        for stop in range(start, 10):
            assert b"".join(between(rope, start, stop)) == b"abcdefghi"[start:stop]
    assert whole(rope) == b"abcdefghi"


def test_what_is_cut_out_is_what_protobuf_reads() -> None:
    content = pb.Content(integers={"n": -5}, fractions={"f": 0.5}, sum=pb.Sum(members=["a"], fraction_bits=7))
    content.tensors.add(name="x").tensor.data = bytes(300)
    content.tensors.add(name="y")
    raw = content.SerializeToString()
    values, rest = cut(memoryview(raw), pb.Content.TENSORS_FIELD_NUMBER, "content")
    assert [pb.Content.FromString(b"".join(field(1, [value]))).tensors[0] for value in values] == list(content.tensors)
    content.ClearField("tensors")
    assert pb.Content.FromString(rest) == content


@pytest.mark.parametrize(
    "raw",
    [b"\x0a", b"\x0a\x05abc", b"\x0a" + b"\xff" * 10, b"\xff" * 11, b"\x0b", b"\x0c", b"\x0f", b"\x09abc", b"\x0d\0"],
)
def test_bytes_that_are_no_message_are_refused(raw: bytes) -> None:
    with pytest.raises(BadFrame, match=f"{len(raw)} bytes that are no content"):
        cut(memoryview(raw), 1, "content")


def test_noise_is_refused_by_name_or_read() -> None:
    whole_one = bytearray(whole(content_to_rope(Content({"x": np.ones(8, np.float32)}, {"n": 1}, part(9)), "test")))
    for _ in range(500):
        raw = bytearray(whole_one)
        for at in RNG.integers(len(raw), size=RNG.integers(1, 4)):
            raw[at] = RNG.integers(256)
        try:
            content_from_rope((bytes(raw),))
        except Exception as error:
            assert type(error).__module__ == "tierline.core.errors", error
