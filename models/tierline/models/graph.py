"""A user's network as a graph that can be cut: operators in order, the tensors between them, and where to cut.

Read from ONNX. The batch axis stays free; everything else must be fixed, since a link agrees on a tensor's shape
beforehand. Operators that do not depend on the input are constants, and belong to whoever needs them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner

from tierline.core.errors import BundleError
from tierline.core.types import TensorSpec
from tierline.models.onnx_ready import ready

_DATA_DEPENDENT = frozenset({"If", "Loop", "Scan", "NonZero", "NonMaxSuppression", "Unique", "Compress", "StringSplit"})
"""Control flow, and operators whose output shape depends on values."""
_DTYPES = frozenset({"float32"})
"""What a link carries between Sections."""


@dataclass(frozen=True, slots=True)
class Node:
    """One operator that depends on the input."""

    name: str
    op: str
    inputs: tuple[str, ...]
    """Tensors that depend on the input, each once."""
    outputs: tuple[str, ...]
    """Only those that somebody reads."""
    macs: int
    """Multiply-adds for one row; for operators without any, values written."""


@dataclass(frozen=True, slots=True)
class CutPoint:
    """Tensors that together separate what is below from what is above."""

    tensors: tuple[str, ...]
    num_bytes: int
    """Of one row, uncoded."""
    share_below: float
    """Of the network's multiply-adds."""

    @property
    def name(self) -> str:
        return "+".join(self.tensors)


@dataclass(frozen=True)
class Network:
    """A checked network with one input and one output."""

    model: Any
    """ModelProto, functions inlined."""
    where: str
    nodes: tuple[Node, ...]
    """In an order in which they can run."""
    tensors: dict[str, TensorSpec]
    """Those that can cross a link, without the batch axis: float32 of fixed shape."""
    input: str
    output: str

    def maker(self) -> dict[str, int]:
        """Index of the node that makes each tensor; the input has none."""
        return {name: index for index, node in enumerate(self.nodes) for name in node.outputs}

    def below(self, tensors: Sequence[str]) -> frozenset[int]:
        """The nodes that are needed for these tensors. Raises BundleError for a tensor that is not there."""
        maker, found, pending = self.maker(), set[int](), []
        for name in tensors:
            if name != self.input and name not in maker:
                raise BundleError(f"{self.where}: no tensor {name!r} to cut at; `tierline model cuts` lists them")
            pending.append(name)
        while pending:
            index = maker.get(pending.pop())
            if index is not None and index not in found:
                found.add(index)
                pending += self.nodes[index].inputs
        return frozenset(found)

    def crossing(self, below: frozenset[int]) -> tuple[str, ...]:
        """Tensors made by `below` (or the input) and needed above it."""
        made = {name for index in below for name in self.nodes[index].outputs} | {self.input}
        read = [x for index, node in enumerate(self.nodes) if index not in below for x in node.inputs]
        if self.output in made:
            read.append(self.output)
        return tuple(dict.fromkeys(name for name in read if name in made))

    def cut_points(self, most: int = 1) -> list[CutPoint]:
        """Places to cut, from the input upwards, at no more than so many tensors each.

        With one tensor these are all there are; with more, those along the order of the nodes.
        """
        total = sum(node.macs for node in self.nodes)
        points: dict[tuple[str, ...], CutPoint] = {}
        for end in range(len(self.nodes)):
            tensors = self.crossing(frozenset(range(end)))
            if len(tensors) <= most and all(name in self.tensors for name in tensors):
                num_bytes = sum(self.tensors[name].nbytes() for name in tensors)
                share = sum(node.macs for node in self.nodes[:end]) / max(1, total)
                points.setdefault(tensors, CutPoint(tensors, num_bytes, share))
        return list(points.values())


def read_network(path: Path) -> Network:
    """Read an ONNX file. Raises BundleError with the first thing that keeps it from being cut."""
    try:
        model = onnx.load(path)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read as ONNX ({error.strerror}); check the path") from error
    except Exception as error:  # protobuf has several, without a base of their own
        raise BundleError(f"{path}: cannot be read as ONNX ({_line(error)})") from error
    return network_of(model, str(path))


def network_of(model: Any, where: str) -> Network:
    """The graph of a ModelProto. Raises BundleError."""
    try:
        model = ready(onnx.inliner.inline_local_functions(model), where)
        onnx.checker.check_model(model)
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except BundleError:
        raise
    except Exception as error:
        raise BundleError(f"{where}: not a valid ONNX model ({_line(error)})") from error
    graph = model.graph
    weights = {x.name: tuple(x.dims) for x in graph.initializer}
    inputs = [x.name for x in graph.input if x.name not in weights]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise BundleError(
            f"{where}: has {len(inputs)} inputs and {len(graph.output)} outputs; a network with one of each can be cut"
        )
    source, result = inputs[0], graph.output[0].name
    values = [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]
    shapes = {x.name: _shape(x) for x in values}
    tensors = {x.name: spec for x in values if (spec := _spec(x)) is not None}
    _check_end("input", source, shapes, tensors, where)
    nodes = _nodes(graph, where, source, result, shapes, weights)
    _check_end("output", result, shapes, tensors, where)
    return Network(model, where, nodes, tensors, source, result)


def _check_end(
    what: str, name: str, shapes: dict[str, tuple[int | None, ...]], tensors: dict[str, TensorSpec], where: str
) -> None:
    if name not in tensors:
        raise BundleError(
            f"{where}: {what} {name!r} is {_shown(shapes[name])}; it must be float32 with a free batch axis 0 and "
            "all other axes fixed (export it with dynamic_shapes or dynamic_axes for axis 0 only)"
        )


def _nodes(
    graph: Any,
    where: str,
    source: str,
    result: str,
    shapes: dict[str, tuple[int | None, ...]],
    weights: dict[str, tuple[int, ...]],
) -> tuple[Node, ...]:
    """Nodes between input and output, without what nobody reads."""
    live, kept = {source}, []
    for node in graph.node:
        if live.intersection(node.input):
            label = f"{node.op_type} {node.name or node.output[0]!r}"
            if node.op_type in _DATA_DEPENDENT:
                raise BundleError(f"{where}: {label} decides shapes or branches by values; such a graph cannot be cut")
            live.update(filter(None, node.output))
            kept.append(node)
    needed, found = {result}, []
    for node in reversed(kept):
        outputs = tuple(name for name in node.output if name in needed)
        if not outputs:
            continue
        for name in outputs:
            if None in shapes.get(name, (None, None))[1:]:
                raise BundleError(
                    f"{where}: tensor {name!r} of {node.op_type} has the shape {_shown(shapes.get(name))}; only the "
                    "batch axis 0 may be free: export with fixed height and width, or simplify the model first"
                )
        inputs = tuple(dict.fromkeys(name for name in node.input if name in live))
        needed.update(inputs)
        found.append(Node(node.name, node.op_type, inputs, outputs, _macs(node, shapes, weights)))
    if source not in needed:
        raise BundleError(f"{where}: the output {result!r} does not depend on the input {source!r}")
    return tuple(reversed(found))


def _macs(node: Any, shapes: dict[str, tuple[int | None, ...]], weights: dict[str, tuple[int, ...]]) -> int:
    """Multiply-adds for one row."""

    def size(shape: Sequence[int | None]) -> int:
        return math.prod(n or 1 for n in shape[1:])

    values = size(shapes.get(node.output[0], ()))
    if node.op_type in ("Conv", "ConvTranspose") and node.input[1] in weights:
        each = math.prod(weights[node.input[1]][1:])
        return each * (values if node.op_type == "Conv" else size(shapes.get(node.input[0], ())))
    if node.op_type in ("Gemm", "MatMul"):
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        left = shapes.get(node.input[0], ())
        return values * ((left[-2 if transposed else -1] if len(left) > 1 else 1) or 1)
    return values


def _shape(value: Any) -> tuple[int | None, ...]:
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim)


def _spec(value: Any) -> TensorSpec | None:
    """None for what cannot cross a link."""
    shape, code = _shape(value), value.type.tensor_type.elem_type
    if not shape or shape[0] is not None or code == 0:
        return None
    fixed = tuple(n for n in shape[1:] if n is not None)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(code).name
    return TensorSpec(dtype, fixed) if len(fixed) == len(shape) - 1 and dtype in _DTYPES else None


def _shown(shape: tuple[int | None, ...] | None) -> str:
    return "unknown" if shape is None else "(" + ", ".join("?" if n is None else str(n) for n in shape) + ")"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
