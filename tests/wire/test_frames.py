"""Frames on the wire: golden bytes, round trips, and bytes that nobody honest would send."""

from __future__ import annotations

import json
import random
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierline.core.coding import codec_for
from tierline.core.errors import BadFrame, CorruptPayload, ShapeMismatch, UnknownCodec
from tierline.core.flow.coding import decode_rows
from tierline.core.link import messages as m
from tierline.core.link.link import tensors
from tierline.core.types import NodeId, Payload, SampleId, TensorSpec
from tierline.core.wire import MAX_RANK, MAX_ROWS, frame_from_wire, frame_to_wire, parse_frame
from tierline.v1 import inference_pb2 as pb

GOLDEN = Path(__file__).parent / "golden" / "frames.json"
IDS = (SampleId(NodeId("edge"), 7, 1), SampleId(NodeId("edge"), 7, 2))
MIXED = (SampleId(NodeId("edge"), 7, 1), SampleId(NodeId("other"), 8, 300))
LOGITS = codec_for("raw").encode(np.array([[1.5, -2.0, 0.25], [0.0, 1.0, 2.0]], np.float32))
BITS = codec_for("bitplane").encode(np.array([[1, -1, 1, 1, -1, -1], [-1, -1, 1, 1, 1, 1]], np.float32))

BODIES: dict[str, m.Body | None] = {
    "acknowledgement": None,
    "open": m.Open("device", 3, 4, 5),
    "part": m.Part(0, "left", IDS, 1, [100.0, 250.5], {"logits": LOGITS}, BITS),
    "part_fused": m.Part(1, "edge", MIXED, 2, [50.0, 50.0], {}, BITS, True, [3, 2]),
    "pull": m.Pull(0, "left", IDS),
    "features": m.Features(0, "left", IDS[:1], replace(BITS, shape=(1, 6), data=BITS.data[:1]), MIXED),
    "verdict": m.Verdict(
        "left",
        IDS,
        ["local", "cloud"],
        {"logits": LOGITS},
        [3, 2],
        ["", "deadline"],
        [m.HopTimes("edge", "edge", [[9, 1, 2], [8, 3, 4]])],
        1,
    ),
    "verdict_of_one_exit": m.Verdict("left", IDS, ["local", "local"], {}, [3, 3], ["", ""], [], 1),
    "refused": m.Refused(0, "left", IDS, "plan", "made under plan 7"),
    "capture": m.CaptureNow(IDS, 1000.0),
    "mode": m.Mode(1, True),
}


def read(raw: bytes) -> m.Frame:
    return frame_from_wire(parse_frame(raw))


def written(body: m.Body | None) -> bytes:
    return frame_to_wire(m.Frame(9 if body else 0, 4, body)).SerializeToString(deterministic=True)


def listed(value: object) -> object:
    """Sequences compare as lists."""
    if isinstance(value, (list, tuple)):
        return [listed(x) for x in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: listed(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, dict):
        return {name: listed(x) for name, x in value.items()}
    return value


def test_golden_bytes() -> None:
    """These bytes are out there: they may be read differently never, and written differently only on purpose."""
    golden = json.loads(GOLDEN.read_text())
    assert {name: written(body).hex() for name, body in BODIES.items()} == golden


@pytest.mark.parametrize("name", BODIES)
def test_golden_bytes_are_read(name: str) -> None:
    frame = read(bytes.fromhex(json.loads(GOLDEN.read_text())[name]))
    assert listed(frame.body) == listed(BODIES[name])
    assert (frame.seq, frame.ack) == (9 if BODIES[name] else 0, 4)


names = st.text(max_size=12)
ids = st.lists(
    st.builds(SampleId, names.map(NodeId), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)),
    min_size=1,
    max_size=6,
)


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(ids=ids, name=names, level=st.integers(0, 2**32 - 1), data=st.data())
def test_round_trips(ids: list[SampleId], name: str, level: int, data: st.DataObject) -> None:
    num_rows = len(ids)
    rows = st.lists(st.integers(0, 1000), min_size=num_rows, max_size=num_rows)
    feature = codec_for("raw").encode(np.zeros((num_rows, 2), np.float32))
    texts = st.lists(names, min_size=num_rows, max_size=num_rows)
    bodies: list[m.Body] = [
        m.Part(level, name, ids, 1, [float(x) for x in data.draw(rows)], {"logits": feature}),
        m.Part(level, name, ids, 1, [1.0] * num_rows, {}, feature, True, data.draw(rows)),
        m.Verdict(name, ids, data.draw(texts), {"x": feature}, data.draw(rows), data.draw(texts), [], 5),
        m.Features(level, name, ids, feature, ids),
        m.Refused(level, name, ids, name, name),
    ]
    for body in bodies:
        assert listed(read(written(body)).body) == listed(body)


# --- hostile -------------------------------------------------------------------------------------------------------

ALLOWED = (BadFrame, CorruptPayload, UnknownCodec, ShapeMismatch)
SPECS = (TensorSpec("float32", (3,)), TensorSpec("float32", (6,)))


def swallow(raw: bytes) -> None:
    """What a node does with bytes of a peer; only these errors may come out."""
    try:
        frame = read(raw)
        for payload in tensors(frame.body) if frame.body is not None else []:
            for spec in SPECS:
                try:
                    decode_rows(payload, spec)
                except ALLOWED:
                    continue
    except ALLOWED:
        return


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.binary(max_size=200))
def test_random_bytes(raw: bytes) -> None:
    swallow(raw)


@pytest.mark.parametrize("name", BODIES)
def test_damaged_frames(name: str) -> None:
    raw, rng = written(BODIES[name]), random.Random(name)
    for end in range(len(raw)):
        swallow(raw[:end])
    for bit in range(8 * len(raw)):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        swallow(bytes(flipped))
    for _ in range(50):
        mixed = bytearray(raw)
        for _ in range(3):
            mixed[rng.randrange(len(mixed))] = rng.randrange(256)
        swallow(bytes(mixed))


def part(**fields: object) -> pb.Frame:
    frame = frame_to_wire(m.Frame(1, 0, BODIES["part"]))
    for path, value in fields.items():
        target = frame.part
        *way, last = path.split("__")
        for step in way:
            target = getattr(target, step)
        getattr(target, last).MergeFrom(value) if isinstance(value, list) else setattr(target, last, value)
    return frame


@pytest.mark.parametrize(
    ("what", "frame", "error"),
    [
        ("too many rows", part(ids__seq=list(range(MAX_ROWS))), BadFrame),
        ("origins", part(ids__origin=["a", "b"]), BadFrame),
        ("epochs", part(ids__epoch=[1]), BadFrame),
        ("budgets", part(budget_ms=[1.0, 2.0, 3.0]), BadFrame),
        ("nan", part(budget_ms=[float("nan")]), BadFrame),
        ("rank", part(feature__shape=[1] * MAX_RANK), BadFrame),
        ("checksum", part(feature__data=b"\0\1\2"), CorruptPayload),
    ],
)
def test_columns_that_do_not_fit(what: str, frame: pb.Frame, error: type[Exception]) -> None:
    with pytest.raises(error):
        read(frame.SerializeToString())


def test_a_fused_part_needs_its_views() -> None:
    with pytest.raises(BadFrame, match="num_views"):
        read(part(fused=True).SerializeToString())


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_budget_is_a_number(value: float) -> None:
    for body in (replace(BODIES["part"], budget_ms=[value, 1.0]), m.CaptureNow(IDS, value)):  # type: ignore[type-var]
        with pytest.raises(BadFrame, match="budget_ms"):
            read(written(body))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "codec", ["raw", "affine", "bitplane", "float16", "bfloat16", "float8_e4m3", "float8_e4m3:row", "radix", "dithered"]
)
@pytest.mark.parametrize("shape", [(2, 2**31), (2**32 - 1, 3), (4096, 2**32 - 1, 2**32 - 1)])
def test_huge_shapes_allocate_nothing(codec: str, shape: tuple[int, ...]) -> None:
    """Not even where the receiver expects that shape."""
    payload = Payload(codec, "float32", shape, bytes(8))
    codec_for(codec)
    tracemalloc.start()
    try:
        for spec in (*SPECS, TensorSpec("float32", shape[1:])):
            with pytest.raises(CorruptPayload):
                decode_rows(payload, spec)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    "token", ["", "nonesuch", "../codec/raw", "_check", "/tmp/evil.py", "evil.py", "raw\0", "r" * 9999]
)
def test_a_codec_is_one_of_ours(token: str) -> None:
    with pytest.raises(UnknownCodec) as caught:
        decode_rows(Payload(token, "float32", (1, 3), bytes(12)), SPECS[0])
    assert len(str(caught.value)) < 300
