"""The translation between parcels and `tierline.v1` messages; what a peer sent is checked here. Contents of letters are
`core.link.content_wire`'s.

Raises BadFrame or PeerRejected, never anything else.
"""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.message import DecodeError

from tierline.core.errors import BadFrame, PeerRejected
from tierline.core.link.fields import cut, field
from tierline.core.link.fleet import PROTOCOL
from tierline.core.link.letters import (
    Declined,
    Head,
    LetterKind,
    Parcel,
    Piece,
    Present,
    Received,
    Settled,
    StepKind,
)
from tierline.core.types import NodeId
from tierline.v1 import learning_pb2 as pb

_STEPS: Mapping[StepKind, pb.Step.ValueType] = {"turn": pb.STEP_TURN, "resync": pb.STEP_RESYNC}
_KINDS: Mapping[LetterKind, pb.Kind.ValueType] = {
    "message": pb.KIND_MESSAGE,
    "part": pb.KIND_PART,
    "total": pb.KIND_TOTAL,
    "report": pb.KIND_REPORT,
}
_STEP_OF = {number: name for name, number in _STEPS.items()}
_KIND_OF = {number: name for name, number in _KINDS.items()}


def parcel_to_wire(parcel: Parcel) -> bytes:
    out = pb.Parcel()
    if isinstance(parcel, Piece):
        piece = pb.Piece()
        if parcel.head is not None:
            _head_to_wire(parcel.head, parcel.num_bytes, piece.head)
        inner = [piece.SerializeToString(), *field(pb.Piece.DATA_FIELD_NUMBER, parcel.data)]
        return b"".join(field(pb.Parcel.PIECE_FIELD_NUMBER, inner))
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
        pieces, rest = cut(memoryview(raw), pb.Parcel.PIECE_FIELD_NUMBER, "parcel")
        if len(pieces) == 1 and not rest:
            return _piece_from_wire(pieces[0])
        parcel = pb.Parcel.FromString(rest)
    except DecodeError as error:
        raise BadFrame(f"{len(raw)} bytes that are no parcel") from error
    if pieces:
        raise BadFrame("a parcel with two bodies")
    kind = parcel.WhichOneof("body")
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


def _piece_from_wire(raw: memoryview) -> Piece:
    datas, rest = cut(raw, pb.Piece.DATA_FIELD_NUMBER, "piece")
    if len(datas) > 1:
        raise BadFrame("a piece with its data twice")
    data = tuple(datas)
    head = pb.Piece.FromString(rest)
    if not head.HasField("head"):
        return Piece(data)
    return Piece(data, _head_from_wire(head.head), head.head.num_bytes)


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
