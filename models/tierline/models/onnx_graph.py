"""Writes the layers of a DDNN as ONNX graphs, node by node.

A direct writer instead of a tracer: the same model always gives the same bytes, the graphs hold nothing but standard
operators that every engine knows, and the files stay small. The batch axis is free. Batch-norm becomes one multiply
and one add per channel, computed in float64; sign becomes `Where(x >= 0, 1, -1)`, exact at zero where ONNX's `Sign`
is not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from tierline.core.types import Array
from tierline.models.layers.binary import BinaryConv2d, BinaryLinear, Sign
from tierline.models.layers.blocks import FC, ConvP

OPSET = 17
"""Old enough for TensorRT 8.6 and onnxruntime 1.13, new enough for every operator used here."""
IR_VERSION = 8


class GraphWriter:
    """One ONNX graph under construction; methods append a layer and return the name of its result."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, shape: tuple[int, ...]) -> str:
        """Declare a float32 input; `shape` is without the batch axis."""
        self._inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape]))
        return name

    def output(self, x: str, name: str, shape: tuple[int, ...]) -> None:
        """Give result `x` the public name `name`."""
        self._nodes.append(helper.make_node("Identity", [x], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape]))

    def convp(self, x: str, block: ConvP) -> str:
        """conv -> pool -> batch-norm -> activation."""
        weight = block.conv.effective_weight() if isinstance(block.conv, BinaryConv2d) else block.conv.weight
        x = self._node("Conv", [x, self._weight(weight.detach().numpy())], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        stride = block.stride
        x = self._node("MaxPool", [x], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[stride, stride])
        x = self._norm(x, block.norm, (-1, 1, 1))
        return self._sign(x) if isinstance(block.activation, Sign) else self._node("Relu", [x])

    def fc(self, x: str, block: FC) -> str:
        """flatten -> linear -> batch-norm."""
        linear = block.linear
        weight = linear.effective_weight() if isinstance(linear, BinaryLinear) else linear.weight
        x = self._node("Flatten", [x], axis=1)
        x = self._node("MatMul", [x, self._weight(weight.detach().numpy().T)])
        return self._norm(x, block.norm, (-1,))

    def to_bytes(self) -> bytes:
        """The checked model, everything in one file."""
        graph = helper.make_graph(
            self._nodes, self._name, self._inputs, self._outputs, initializer=list(self._weights.values())
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="tierline"
        )
        onnx.checker.check_model(model, full_check=True)
        raw: bytes = model.SerializeToString(deterministic=True)
        return raw

    def _node(self, op: str, inputs: list[str], **attributes: Any) -> str:
        name = f"{op.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def _weight(self, value: Array) -> str:
        name = f"weight_{len(self._weights)}"
        self._weights[name] = numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name)
        return name

    def _norm(self, x: str, norm: nn.BatchNorm1d | nn.BatchNorm2d, shape: tuple[int, ...]) -> str:
        mean, var = norm.running_mean, norm.running_var
        assert mean is not None and var is not None
        deviation = np.sqrt(var.double().numpy() + norm.eps)
        scale = norm.weight.detach().double().numpy() / deviation
        offset = norm.bias.detach().double().numpy() - mean.double().numpy() * scale
        x = self._node("Mul", [x, self._weight(scale.reshape(shape))])
        return self._node("Add", [x, self._weight(offset.reshape(shape))])

    def _sign(self, x: str) -> str:
        zero, plus, minus = (self._weight(np.float32(v).reshape(())) for v in (0.0, 1.0, -1.0))
        return self._node("Where", [self._node("GreaterOrEqual", [x, zero]), plus, minus])
