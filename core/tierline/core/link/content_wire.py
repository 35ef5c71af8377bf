"""The translation between contents of letters and `tierline.v1.Content`; what a peer sent is checked here.

Models are copied once on the way out, and on the way in only where memory cannot have their values as they lie.
Raises BadFrame, CorruptPayload, ShapeMismatch or UnknownCodec, never anything else.
"""

from __future__ import annotations

import math

import numpy as np
from google.protobuf.message import DecodeError

from tierline.core import coding
from tierline.core.codec.raw import as_on_wire, in_place
from tierline.core.errors import BadFrame, ShapeMismatch
from tierline.core.link.fields import Bytes, Rope, cut, field, whole
from tierline.core.link.letters import Content, Part
from tierline.core.types import Array, NodeId, Payload, TensorSpec
from tierline.core.wire import check_sum, payload_from_wire, shape_from_wire
from tierline.kernels.crc32 import crc32
from tierline.v1 import learning_pb2 as pb
from tierline.v1 import tensor_pb2

SUM = "sum"
"""Name of the tensor of a part of a sum."""
_MAX_WEIGHT_BYTES = 16
_UNCOPIED_FROM = 64 << 10
"""Bytes of a part of a sum."""
_MAX_VALUES_PER_BYTE = 1024
"""More than any codec here packs; a header cannot make its receiver allocate more."""
_PADDING = pb.Content.PADDING_FIELD_NUMBER
_ALIGNMENT, _ALIGNED_FROM = 8, 1024
"""Bytes: of the widest dtype; and from which on it is worth it."""


def content_to_rope(content: Content, where: str) -> Rope:
    """Not to be written to. Arrays are copied, but not a part of a sum: what was made to be sent stays as it is. Raises
    ShapeMismatch for an array or a number that the wire does not carry; `where` names the letter."""
    out = pb.Content()
    tensors: list[Bytes] = []
    for name, array in content.arrays.items():
        _add_tensor(tensors, name, array, where)
    tensors = [whole(tensors)] if tensors else []
    for name, value in content.numbers.items():
        if not isinstance(value, int):
            out.fractions[name] = value
        elif -(2**63) <= value < 2**63:
            out.integers[name] = value
        else:
            raise ShapeMismatch(f"{where}: the whole number {name!r} does not fit into 64 bits")
    if content.part is not None:
        part = content.part
        _add_tensor(tensors, SUM, part.integers, where)
        out.sum.fraction_bits = part.fraction_bits
        out.sum.weight_units = part.weight_units.to_bytes(_MAX_WEIGHT_BYTES, "little").rstrip(b"\0")
        out.sum.members.extend(part.members)
        out.sum.group.extend(part.group)
    rope = (*tensors, out.SerializeToString())
    return rope if content.part is not None and content.part.integers.nbytes >= _UNCOPIED_FROM else (whole(rope),)


def content_from_rope(rope: Rope) -> Content:
    """Arrays may be views on the rope, and then cannot be written to. Raises BadFrame, CorruptPayload, UnknownCodec,
    ShapeMismatch."""
    tensors, found = _parsed(whole(rope))
    arrays = dict(_tensor_from_wire(tensor) for tensor in tensors)
    if len(arrays) < len(tensors):
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


def who_adds(rope: Rope) -> tuple[tuple[NodeId, ...], tuple[NodeId, ...]]:
    """Who made the part of a sum that a content holds, and all who may add to that sum. Raises BadFrame."""
    found = _parsed(rope[-1])[1].sum  # of a rope that was made here, the tensors come before its last part
    return tuple(map(NodeId, found.members)), tuple(map(NodeId, found.group))


def _parsed(raw: Bytes) -> tuple[list[memoryview], pb.Content]:
    """The tensors, and a content without them."""
    tensors, rest = cut(memoryview(raw).toreadonly(), pb.Content.TENSORS_FIELD_NUMBER, "content")
    try:
        return tensors, pb.Content.FromString(rest)
    except DecodeError as error:
        raise BadFrame(f"{len(raw)} bytes that are no content") from error


def _add_tensor(parts: list[Bytes], name: str, array: Array, where: str) -> None:
    """Field `tensors` of a Content, with a padding before it that puts its data where its reader can use it without a
    copy. The array's bytes are not copied."""
    try:
        dtype, on_wire = as_on_wire(array)
    except ShapeMismatch as error:
        raise ShapeMismatch(f"{where}: {name!r}: {error}") from None
    data = np.ascontiguousarray(on_wire).reshape(-1).view(np.uint8).data
    header = tensor_pb2.Tensor(codec="raw", dtype=dtype, shape=array.shape, crc32=crc32(data))
    tensor = [header.SerializeToString(), *field(tensor_pb2.Tensor.DATA_FIELD_NUMBER, [data])]
    named = [
        tensor_pb2.NamedTensor(name=name).SerializeToString(),
        *field(tensor_pb2.NamedTensor.TENSOR_FIELD_NUMBER, tensor),
    ]
    added = field(pb.Content.TENSORS_FIELD_NUMBER, named)
    if len(data) >= _ALIGNED_FROM:
        before = sum(map(len, [*parts, *added])) - len(data) + len(b"".join(field(_PADDING, [b""])))
        parts += field(_PADDING, [bytes(-before % _ALIGNMENT)])
    parts += added


def _tensor_from_wire(raw: memoryview) -> tuple[str, Array]:
    """Name and values of a NamedTensor."""
    tensors, rest = cut(raw, tensor_pb2.NamedTensor.TENSOR_FIELD_NUMBER, "tensor")
    if len(tensors) != 1:
        raise BadFrame(f"{len(tensors)} tensors of one name")
    datas, head = cut(tensors[0], tensor_pb2.Tensor.DATA_FIELD_NUMBER, "tensor")
    if len(datas) > 1:
        raise BadFrame("a tensor with its data twice")
    try:
        name = tensor_pb2.NamedTensor.FromString(rest).name
        header = tensor_pb2.Tensor.FromString(head)
    except DecodeError as error:
        raise BadFrame(f"{len(raw)} bytes that are no tensor") from error
    data = datas[0] if datas else memoryview(b"")
    shape = shape_from_wire(header)
    if header.codec == "raw" and shape:
        found = in_place(data, header.dtype, shape)
        if found is not None:
            check_sum(header, data)
            return name, found
    return name, _array(payload_from_wire(header, shape, bytes(data)))


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
