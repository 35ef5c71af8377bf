"""The translation between letters and `tierline.v1` messages; what a peer sent is checked here.

Raises BadFrame, CorruptPayload, ShapeMismatch or UnknownCodec, never anything else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from google.protobuf.message import DecodeError

from tierline.core import coding
from tierline.core.errors import BadFrame, PeerRejected, ShapeMismatch
from tierline.core.link.fleet import PROTOCOL
from tierline.core.link.letters import (
    Content,
    Declined,
    Head,
    LetterKind,
    Parcel,
    Part,
    Piece,
    Present,
    Received,
    Settled,
    StepKind,
)
from tierline.core.types import Array, NodeId, Payload, TensorSpec
from tierline.core.wire import tensor_from_wire, tensor_to_wire
from tierline.v1 import learning_pb2 as pb
from tierline.v1 import tensor_pb2

_Bytes = bytes | memoryview

SUM = "sum"
"""Name of the tensor of a part of a sum."""

_STEPS: Mapping[StepKind, pb.Step.ValueType] = {"turn": pb.STEP_TURN, "resync": pb.STEP_RESYNC}
_KINDS: Mapping[LetterKind, pb.Kind.ValueType] = {
    "message": pb.KIND_MESSAGE,
    "part": pb.KIND_PART,
    "total": pb.KIND_TOTAL,
    "report": pb.KIND_REPORT,
}
_STEP_OF = {number: name for name, number in _STEPS.items()}
_KIND_OF = {number: name for name, number in _KINDS.items()}
_MAX_WEIGHT_BYTES = 16


def parcel_to_wire(parcel: Parcel) -> bytes:
    out = pb.Parcel()
    if isinstance(parcel, Piece):
        piece = pb.Piece()
        if parcel.head is not None:
            _head_to_wire(parcel.head, parcel.num_bytes, piece.head)
        inner = [piece.SerializeToString(), *_field(pb.Piece.DATA_FIELD_NUMBER, [parcel.data])]
        return b"".join(_field(pb.Parcel.PIECE_FIELD_NUMBER, inner))
    if isinstance(parcel, Received):
        out.received_bytes = parcel.num_bytes
    elif isinstance(parcel, Settled):
        out.settled.run, out.settled.sender, out.settled.receiver = parcel.run, parcel.sender, parcel.receiver
        out.settled.seq.extend(parcel.seqs)
    elif isinstance(parcel, Declined):
        to = out.declined
        to.run, to.sender, to.receiver, to.seq = parcel.run, parcel.sender, parcel.receiver, parcel.seq
        to.code, to.message = parcel.code, parcel.message
    else:
        out.present.protocol = PROTOCOL
        out.present.nodes.extend(parcel.nodes)
        out.present.run = parcel.run
    return out.SerializeToString()


def parcel_from_wire(raw: bytes) -> Parcel:
    """Raises BadFrame, or PeerRejected for another version of the protocol."""
    try:
        parcel = pb.Parcel.FromString(raw)
    except DecodeError as error:
        raise BadFrame(f"{len(raw)} bytes that are no parcel") from error
    kind = parcel.WhichOneof("body")
    if kind == "piece":
        piece = parcel.piece
        if not piece.HasField("head"):
            return Piece(piece.data)
        return Piece(piece.data, _head_from_wire(piece.head), piece.head.num_bytes)
    if kind == "received_bytes":
        return Received(parcel.received_bytes)
    if kind == "settled":
        s = parcel.settled
        return Settled(s.run, NodeId(s.sender), NodeId(s.receiver), tuple(s.seq))
    if kind == "declined":
        d = parcel.declined
        return Declined(d.run, NodeId(d.sender), NodeId(d.receiver), d.seq, d.code, d.message)
    if kind == "present":
        if parcel.present.protocol != PROTOCOL:
            raise PeerRejected(
                f"the peer learns with protocol {parcel.present.protocol}, this node with {PROTOCOL}; "
                "install matching versions of tierline"
            )
        return Present(tuple(NodeId(node) for node in parcel.present.nodes), parcel.present.run)
    raise BadFrame("a parcel without a body")


def content_to_bytes(content: Content, where: str) -> bytes:
    """Raises ShapeMismatch for an array or a number that the wire does not carry; `where` names the letter."""
    out = pb.Content()
    tensors = [part for name, array in content.arrays.items() for part in _tensor_to_wire(name, array, where)]
    for name, value in content.numbers.items():
        if not isinstance(value, int):
            out.fractions[name] = value
        elif -(2**63) <= value < 2**63:
            out.integers[name] = value
        else:
            raise ShapeMismatch(f"{where}: the whole number {name!r} does not fit into 64 bits")
    if content.part is not None:
        part = content.part
        tensors += _tensor_to_wire(SUM, part.integers, where)
        out.sum.fraction_bits = part.fraction_bits
        out.sum.weight_units = part.weight_units.to_bytes(_MAX_WEIGHT_BYTES, "little").rstrip(b"\0")
        out.sum.members.extend(part.members)
        out.sum.group.extend(part.group)
    return b"".join([*tensors, out.SerializeToString()])


def content_from_bytes(raw: bytes) -> Content:
    """Raises BadFrame, CorruptPayload, UnknownCodec, ShapeMismatch."""
    try:
        found = pb.Content.FromString(raw)
    except DecodeError as error:
        raise BadFrame(f"{len(raw)} bytes that are no content") from error
    arrays = {named.name: _array(tensor_from_wire(named.tensor)) for named in found.tensors}
    if len(arrays) < len(found.tensors):
        raise BadFrame("content: a name stands twice")
    numbers: dict[str, int | float] = {**found.integers, **found.fractions}
    if not found.HasField("sum"):
        return Content(arrays, numbers)
    integers = arrays.pop(SUM, None)
    if integers is None or integers.dtype != np.int64 or integers.ndim != 1:
        raise BadFrame("sum: needs one row of int64")
    if len(found.sum.weight_units) > _MAX_WEIGHT_BYTES:
        raise BadFrame(f"sum: a weight of {len(found.sum.weight_units)} bytes, at most {_MAX_WEIGHT_BYTES}")
    members = tuple(NodeId(member) for member in found.sum.members)
    weight_units = int.from_bytes(found.sum.weight_units, "little")
    group = tuple(NodeId(member) for member in found.sum.group)
    return Content(arrays, numbers, Part(integers, weight_units, found.sum.fraction_bits, members, group))


def members_of(raw: bytes) -> tuple[NodeId, ...]:
    """Who made the part of a sum that a content holds. Raises BadFrame."""
    try:
        return tuple(NodeId(member) for member in pb.Content.FromString(raw).sum.members)
    except DecodeError as error:
        raise BadFrame(f"{len(raw)} bytes that are no content") from error


def _head_to_wire(head: Head, num_bytes: int, out: pb.Head) -> None:
    out.run, out.sender, out.receiver, out.seq = head.run, head.sender, head.receiver, head.seq
    out.step, out.round, out.tag, out.kind = _STEPS[head.step], head.round, head.tag, _KINDS[head.kind]
    if head.mark is not None:
        out.mark.round, out.mark.number = head.mark
    out.num_bytes = num_bytes


def _head_from_wire(head: pb.Head) -> Head:
    if head.step not in _STEP_OF or head.kind not in _KIND_OF:
        raise BadFrame(f"letter of step {head.step} and kind {head.kind}, which this version does not know")
    return Head(
        head.run,
        NodeId(head.sender),
        NodeId(head.receiver),
        head.seq,
        _STEP_OF[head.step],
        head.round,
        head.tag,
        _KIND_OF[head.kind],
        (head.mark.round, head.mark.number) if head.HasField("mark") else None,
    )


def _tensor_to_wire(name: str, array: Array, where: str) -> list[_Bytes]:
    """Field `tensors` of a Content."""
    try:
        payload = coding.codec_for("raw").encode(array)
    except ShapeMismatch as error:
        raise ShapeMismatch(f"{where}: {name!r}: {error}") from None
    header = tensor_pb2.Tensor()
    tensor_to_wire(payload, header, with_data=False)
    tensor = [header.SerializeToString(), *_field(tensor_pb2.Tensor.DATA_FIELD_NUMBER, [payload.data])]
    named = [
        tensor_pb2.NamedTensor(name=name).SerializeToString(),
        *_field(tensor_pb2.NamedTensor.TENSOR_FIELD_NUMBER, tensor),
    ]
    return _field(pb.Content.TENSORS_FIELD_NUMBER, named)


def _field(number: int, parts: Sequence[_Bytes]) -> list[_Bytes]:
    """A field of protobuf whose value is bytes or a message, without copying what is long: setting it in a message and
    serialising that would copy it twice."""
    return [_varint(number << 3 | 2), _varint(sum(map(len, parts))), *parts]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _array(payload: Payload) -> Array:
    """Decoded, in the shape and dtype that it says; a letter is no longer than its receiver allows."""
    if not payload.shape:
        raise BadFrame("tensor without an axis")
    codec = coding.codec_for(payload.codec)
    try:
        spec = TensorSpec(str(np.dtype(payload.dtype)), payload.shape[1:])
    except TypeError:
        raise BadFrame(f"tensor of the unknown dtype {payload.dtype!r}") from None
    num_rows = payload.shape[0]
    low, _ = codec.size_bounds(spec, num_rows)
    if low > len(payload.data) or math.prod(payload.shape) > _MAX_VALUES_PER_BYTE * max(1, len(payload.data)):
        raise BadFrame(f"tensor of shape {list(payload.shape)} in {len(payload.data)} bytes of {payload.codec}")
    return codec.decode(payload, spec, max_rows=num_rows)


_MAX_VALUES_PER_BYTE = 1024
"""More than any codec here packs; a header cannot make its receiver allocate more."""
