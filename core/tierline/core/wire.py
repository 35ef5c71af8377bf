"""The only translation between domain values and `tierline.v1` messages.

Everything read from a peer is checked here before it becomes a domain value: a message that cannot be understood
raises BadFrame, CorruptPayload or UnknownCodec, never anything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar

from google.protobuf.message import DecodeError

from tierline.core.errors import BadFrame, CorruptPayload
from tierline.core.link import messages as m
from tierline.core.types import NodeId, Payload, SampleId
from tierline.kernels.crc32 import crc32
from tierline.v1 import inference_pb2 as pb
from tierline.v1 import tensor_pb2

_N = TypeVar("_N", int, float)

MAX_ROWS = 4096
"""Rows in one message; more are refused."""
MAX_RANK = 8
FRAME_OVERHEAD_BYTES = 14
"""gRPC's message prefix (5) and one HTTP/2 DATA frame header (9), which no message counts itself."""


def tensor_to_wire(payload: Payload, into: tensor_pb2.Tensor) -> None:
    into.codec = payload.codec
    into.dtype = payload.dtype
    into.shape.extend(payload.shape)
    into.data = payload.data
    into.crc32 = crc32(payload.data)
    if payload.params:
        into.params.update(payload.params)


def tensor_from_wire(tensor: tensor_pb2.Tensor, num_rows: int | None = None) -> Payload:
    """Check header and checksum. With `num_rows`, axis 0 must hold exactly that many."""
    shape = shape_from_wire(tensor)
    if num_rows is not None and (not shape or shape[0] != num_rows):
        raise BadFrame(f"tensor of shape {list(shape)} for {num_rows} rows")
    return payload_from_wire(tensor, shape, tensor.data)


def payload_from_wire(tensor: tensor_pb2.Tensor, shape: tuple[int, ...], data: bytes) -> Payload:
    """`data` may have been taken out of the message."""
    check_sum(tensor, data)
    return Payload(tensor.codec, tensor.dtype, shape, data, dict(tensor.params) if tensor.params else {})


def shape_from_wire(tensor: tensor_pb2.Tensor) -> tuple[int, ...]:
    shape = tuple(tensor.shape[:])
    if len(shape) > MAX_RANK:
        raise BadFrame(f"tensor of rank {len(shape)}, at most {MAX_RANK}")
    return shape


def check_sum(tensor: tensor_pb2.Tensor, data: bytes | memoryview) -> None:
    """`data` may lie elsewhere than in the message. Raises CorruptPayload."""
    if crc32(data) != tensor.crc32:
        raise CorruptPayload(f"{tensor.codec or 'tensor'} payload of {len(data)} bytes: checksum differs")


def ids_to_wire(ids: Sequence[SampleId], into: pb.SampleIds) -> None:
    """Rows of one origin and epoch share a single entry."""
    if not ids:
        return
    first = ids[0]
    if len(ids) == 1:
        into.origin.append(first.origin)
        into.epoch.append(first.epoch)
        into.seq.append(first.seq)
        return
    if all(i.origin == first.origin and i.epoch == first.epoch for i in ids):
        into.origin.append(first.origin)
        into.epoch.append(first.epoch)
    else:
        into.origin.extend(i.origin for i in ids)
        into.epoch.extend(i.epoch for i in ids)
    into.seq.extend(i.seq for i in ids)


def ids_from_wire(ids: pb.SampleIds) -> tuple[SampleId, ...]:
    num_rows = len(ids.seq)
    if num_rows > MAX_ROWS:
        raise BadFrame(f"{num_rows} rows in one message, at most {MAX_ROWS}")
    if num_rows == 0:
        return ()
    origins, epochs, seqs = ids.origin[:], ids.epoch[:], ids.seq[:]
    if len(origins) != len(epochs) or len(origins) not in (1, num_rows):
        raise BadFrame(f"{len(origins)} origins and {len(epochs)} epochs for {num_rows} rows")
    if num_rows == 1:
        return (SampleId(NodeId(origins[0]), epochs[0], seqs[0]),)
    if len(origins) == 1:
        origin, epoch = NodeId(origins[0]), epochs[0]
        return tuple([SampleId(origin, epoch, seq) for seq in seqs])
    return tuple([SampleId(NodeId(o), e, s) for o, e, s in zip(origins, epochs, seqs, strict=True)])


def frame_to_wire(frame: m.Frame) -> pb.Frame:
    out = pb.Frame(seq=frame.seq, ack=frame.ack)
    body = frame.body
    if body is None:
        return out
    if isinstance(body, m.Part):
        part = out.part
        _rows_to_wire(body, part)
        part.plan = body.plan
        part.budget_ms.extend(_shared(body.budget_ms))
        _outputs_to_wire(body.outputs, part.outputs)
        if body.feature is not None:
            tensor_to_wire(body.feature, part.feature)
        if body.fused:
            part.fused = True
            part.num_views.extend(_shared(body.num_views))
    elif isinstance(body, m.Verdict):
        _verdict_to_wire(body, out.verdict)
    elif isinstance(body, m.Pull):
        _rows_to_wire(body, out.pull)
    elif isinstance(body, m.Features):
        _rows_to_wire(body, out.features)
        if body.feature is not None:
            tensor_to_wire(body.feature, out.features.feature)
        if body.gone:
            ids_to_wire(body.gone, out.features.gone)
    elif isinstance(body, m.Refused):
        _rows_to_wire(body, out.refused)
        out.refused.code = body.code
        out.refused.message = body.message
    elif isinstance(body, m.CaptureNow):
        ids_to_wire(body.ids, out.capture.ids)
        out.capture.budget_ms = body.budget_ms
    elif isinstance(body, m.Mode):
        out.mode.level = body.level
        out.mode.eager = body.eager
    else:
        out.open.node = body.node
        out.open.epoch = body.epoch
        out.open.peer_epoch = body.peer_epoch
        out.open.received = body.received
    return out


def frame_from_wire(frame: pb.Frame) -> m.Frame:
    """Raises BadFrame or CorruptPayload."""
    kind = frame.WhichOneof("body")
    if kind is None:
        return m.Frame(frame.seq, frame.ack)
    return m.Frame(frame.seq, frame.ack, _BODIES[kind](getattr(frame, kind)))


def parse_frame(raw: bytes) -> pb.Frame:
    """Bytes to message. Raises BadFrame."""
    try:
        return pb.Frame.FromString(raw)
    except DecodeError as error:
        raise BadFrame(f"{len(raw)} bytes that are no frame") from error


def _part(part: pb.Part) -> m.Part:
    ids = ids_from_wire(part.ids)
    num_rows = len(ids)
    fused = part.fused
    return m.Part(  # in order: keywords are the dearer half of making one
        part.level,
        part.name,
        ids,
        part.plan,
        _finite(_spread(part.budget_ms, num_rows, "budget_ms")),
        _outputs(part.outputs, num_rows),
        tensor_from_wire(part.feature, num_rows) if part.HasField("feature") else None,
        fused,
        _spread(part.num_views, num_rows, "num_views") if fused else (),
    )


def _verdict(verdict: pb.Verdict) -> m.Verdict:
    ids = ids_from_wire(verdict.ids)
    num_rows = len(ids)
    names = verdict.exits[:]
    index = verdict.exit_index[:]
    if index or len(names) != 1:
        index = _spread(index, num_rows, "exit_index")
        if max(index, default=-1) >= len(names):
            raise BadFrame("verdict: exit_index beyond exits")
        names = [names[i] for i in index]
    else:
        names = names * num_rows  # all rows left at the same exit
    degraded: Sequence[str] = verdict.degraded[:] or [""] * num_rows
    if len(degraded) != num_rows:
        raise BadFrame(f"verdict: {len(degraded)} reasons for {num_rows} rows")
    hops = []
    for hop in verdict.hops:
        ns, width = hop.ns[:], hop.num_spans + 1
        if len(ns) != width * num_rows:
            raise BadFrame(f"verdict: {len(ns)} durations for {num_rows} rows of {width}")
        rows_ns = [ns] if num_rows == 1 else [ns[i : i + width] for i in range(0, len(ns), width)]
        hops.append(m.HopTimes(hop.node, hop.tier, rows_ns))
    return m.Verdict(
        verdict.name,
        ids,
        names,
        _outputs(verdict.outputs, num_rows),
        _spread(verdict.num_views, num_rows, "num_views"),
        degraded,
        hops,
        verdict.plan,
    )


def _pull(pull: pb.Pull) -> m.Pull:
    return m.Pull(pull.level, pull.name, ids_from_wire(pull.ids))


def _features(features: pb.Features) -> m.Features:
    ids = ids_from_wire(features.ids)
    feature = tensor_from_wire(features.feature, len(ids)) if features.HasField("feature") else None
    if ids and feature is None:
        raise BadFrame("features: rows without a tensor")
    return m.Features(features.level, features.name, ids, feature, ids_from_wire(features.gone))


def _refused(refused: pb.Refused) -> m.Refused:
    return m.Refused(refused.level, refused.name, ids_from_wire(refused.ids), refused.code, refused.message)


def _capture(capture: pb.Capture) -> m.CaptureNow:
    return m.CaptureNow(ids_from_wire(capture.ids), _finite([capture.budget_ms])[0])


def _mode(mode: pb.Mode) -> m.Mode:
    return m.Mode(mode.level, mode.eager)


def _open(opening: pb.Open) -> m.Open:
    return m.Open(opening.node, opening.epoch, opening.peer_epoch, opening.received)


_BODIES: Mapping[str, Callable[[Any], m.Body]] = {
    "part": _part,
    "verdict": _verdict,
    "pull": _pull,
    "features": _features,
    "refused": _refused,
    "capture": _capture,
    "mode": _mode,
    "open": _open,
}


def _verdict_to_wire(body: m.Verdict, verdict: pb.Verdict) -> None:
    verdict.name = body.name
    verdict.plan = body.plan
    ids_to_wire(body.ids, verdict.ids)
    exits = body.exits if len(body.exits) == 1 else list(dict.fromkeys(body.exits))
    verdict.exits.extend(exits)
    if len(exits) > 1:
        verdict.exit_index.extend([exits.index(e) for e in body.exits])
    _outputs_to_wire(body.outputs, verdict.outputs)
    verdict.num_views.extend(_shared(body.num_views))
    if any(body.degraded):
        verdict.degraded.extend(body.degraded)
    for hop in body.hops:
        times, rows_ns = verdict.hops.add(), hop.rows_ns
        times.node = hop.node
        times.tier = hop.tier
        times.num_spans = len(rows_ns[0]) - 1 if rows_ns else 0
        times.ns.extend(rows_ns[0] if len(rows_ns) == 1 else chain.from_iterable(rows_ns))


def _rows_to_wire(
    body: m.Part | m.Pull | m.Features | m.Refused,
    into: pb.Part | pb.Pull | pb.Features | pb.Refused,
) -> None:
    into.level = body.level
    into.name = body.name
    ids_to_wire(body.ids, into.ids)


def _outputs_to_wire(outputs: Mapping[str, Payload], into: object) -> None:
    for name, payload in outputs.items():
        named = into.add()  # type: ignore[attr-defined]
        named.name = name
        tensor_to_wire(payload, named.tensor)


def _outputs(outputs: Iterable[tensor_pb2.NamedTensor], num_rows: int) -> dict[str, Payload]:
    return {named.name: tensor_from_wire(named.tensor, num_rows) for named in outputs}


def _shared(values: Sequence[_N]) -> Sequence[_N]:
    """One entry where all rows agree."""
    return values[:1] if len(values) > 1 and all(v == values[0] for v in values) else values


def _finite(budget_ms: list[float]) -> list[float]:
    if not all(map(math.isfinite, budget_ms)):
        raise BadFrame("budget_ms: not a finite number")
    return budget_ms


def _spread(values: Sequence[_N], num_rows: int, what: str) -> list[_N]:
    """Undo `_shared`."""
    listed: list[_N] = values[:]  # type: ignore[assignment]  # protobuf gives a list: a copy made in one piece
    if len(listed) == 1 and num_rows != 1:
        return listed * num_rows
    if len(listed) != num_rows:
        raise BadFrame(f"{what}: {len(listed)} entries for {num_rows} rows")
    return listed
