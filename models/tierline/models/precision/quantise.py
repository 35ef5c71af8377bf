"""INT8 and FP8 by explicit QuantizeLinear and DequantizeLinear around Conv, Gemm and MatMul with constant weights.

    q = saturate(round(x / s)),  x' = s q        s = max |x| / 127 (INT8), max |x| / 448 (FP8, e4m3)

Symmetric, zero points 0: TensorRT takes no others. Activations have one scale, from the largest value on calibration
samples; weights of INT8 one per output channel, those of FP8 one. Biases, and all other operators, stay float32.
(Scheme: Jacob et al., CVPR 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", section 2, without its zero points.)

What a Conv gives is quantised, too, unless it is what leaves the Section: ONNX Runtime computes a Conv in integers
only between quantised tensors. Where a Relu follows, the scale is the Relu's, so that it costs nothing: what is cut
off below zero would have become zero.

`onnxruntime.quantization` does the like, but gives a Conv before a Relu a scale of its own, works on files, and imports
what a reader of calibration data would need; NVIDIA ModelOpt needs packages of a gigabyte.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tierline.core.types import Array
from tierline.kernels.numpy import float8_e4m3

_SMALLEST = 1e-8
"""Of a scale: a tensor that was always 0 on the samples."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Elements that values are rounded to."""

    dtype: int
    largest: float
    opset: int
    """At least: the first whose Q and DQ have them, and the first that ONNX's own evaluator has."""
    by_channel: bool
    encode: Callable[[Array], bytes]
    """Rounds to them."""


def _integers(w: Array) -> bytes:
    return np.clip(np.rint(w), -127, 127).astype("<i1").tobytes()


INT8 = Kind(TensorProto.INT8, 127.0, 19, True, _integers)
FLOAT8_E4M3 = Kind(TensorProto.FLOAT8E4M3FN, float8_e4m3.LARGEST, 19, False, float8_e4m3.encode)


def quantised(model: Any, ranges: Mapping[str, float], kind: Kind) -> Any:
    """The model with Q and DQ nodes; `ranges`: largest absolute value by tensor (`ranges.largest`)."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    _Quantiser(made.graph, ranges, kind).run()
    return made


class _Quantiser:
    def __init__(self, graph: Any, ranges: Mapping[str, float], kind: Kind) -> None:
        self._graph, self._ranges, self._kind = graph, ranges, kind
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._leaving = {value.name for value in graph.output}
        for node in reversed(graph.node):  # by other names, too
            if node.op_type == "Identity" and node.output[0] in self._leaving:
                self._leaving.add(node.input[0])
        self._users: dict[str, list[Any]] = {}
        for node in graph.node:
            for key in node.input:
                self._users.setdefault(key, []).append(node)
        self._nodes: list[Any] = []
        self._more: list[Any] = []
        self._rounded: dict[str, str] = {}
        """Tensors to their rounded twins."""

    def run(self) -> None:
        graph = self._graph
        for node in graph.node:
            axis = self._channel_axis(node)
            if axis is not None:
                node.input[0] = self._activation(node.input[0])
                node.input[1] = self._weight(node.input[1], axis)
            else:  # of what has several users, ONNX Runtime computes in integers only if all users' twins are their own
                node.input[:] = [
                    self._rounded.get(key, key) if len(self._users[key]) == 1 else key for key in node.input
                ]
            self._nodes.append(node)
            if axis is not None:
                self._after(node)
        used = {key for node in self._nodes for key in node.input}
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in self._nodes]
        del graph.node[:]
        del graph.initializer[:]
        graph.node.extend(nodes)
        graph.initializer.extend([*kept, *self._more])

    def _channel_axis(self, node: Any) -> int | None:
        """Axis of the weights' output channels; None for a node that stays as it is."""
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.domain not in ("", "ai.onnx"):
            return None
        weight = self._weights.get(node.input[1])
        if weight is None or weight.data_type != TensorProto.FLOAT or node.input[0] not in self._ranges:
            return None
        if node.op_type == "Conv":
            return 0
        if len(weight.dims) != 2:
            return None
        is_turned = any(a.name == "transB" and a.i for a in node.attribute)
        return 0 if is_turned else 1

    def _after(self, node: Any) -> None:
        """Quantise what a node gives, where that lets it be computed in integers."""
        if len(node.output) != 1 or node.output[0] in self._leaving:
            return
        (key,) = node.output
        users = self._users.get(key, [])
        relu = users[0] if len(users) == 1 and users[0].op_type == "Relu" else None
        if node.op_type == "Conv" or relu is not None:
            self._activation(key, like=relu.output[0] if relu is not None else key)

    def _activation(self, key: str, like: str = "") -> str:
        """A tensor's twin, rounded with the scale of `like`."""
        if key not in self._rounded:
            scale = np.float32(max(self._ranges[like or key] / self._kind.largest, _SMALLEST))
            inputs, node = [key, f"{key}/scale", f"{key}/zero"], f"{key}/Q"
            self._nodes.append(helper.make_node("QuantizeLinear", inputs, [f"{key}/q"], node))
            self._rounded[key] = self._dequantised(key, scale, None)
        return self._rounded[key]

    def _weight(self, key: str, axis: int) -> str:
        name = f"{key}/{axis}" if self._kind.by_channel else key
        if name not in self._rounded:
            w = numpy_helper.to_array(self._weights[key])
            others = tuple(at for at in range(w.ndim) if at != axis or not self._kind.by_channel)
            largest = np.abs(w).max(axis=others, keepdims=True)
            scale = np.maximum(largest / self._kind.largest, _SMALLEST).astype(np.float32)
            raw = self._kind.encode(w / scale)
            self._more.append(helper.make_tensor(f"{name}/q", self._kind.dtype, w.shape, raw, raw=True))
            by_channel = self._kind.by_channel
            self._rounded[name] = self._dequantised(
                name, scale.reshape(-1) if by_channel else scale.reshape(()), axis if by_channel else None
            )
        return self._rounded[name]

    def _dequantised(self, name: str, scale: Any, axis: int | None) -> str:
        where: dict[str, Any] = {} if axis is None else {"axis": axis}
        inputs = [f"{name}/q", f"{name}/scale", f"{name}/zero"]
        self._nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}/dq"], f"{name}/DQ", **where))
        shape = np.shape(scale)
        self._more.append(numpy_helper.from_array(np.asarray(scale, np.float32), f"{name}/scale"))
        zeros = [0.0 if self._kind is FLOAT8_E4M3 else 0] * int(np.prod(shape, dtype=np.int64))
        self._more.append(helper.make_tensor(f"{name}/zero", self._kind.dtype, shape, zeros))
        return f"{name}/dq"
