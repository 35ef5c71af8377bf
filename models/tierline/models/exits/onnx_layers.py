"""Small chains of torch layers as ONNX files: exit heads, encoders and decoders.

Only operators whose meaning is the same in every operator set since 11 (Conv, ConvTranspose, Relu, AveragePool,
Flatten, Gemm), so that a chain takes the set of the network that it is put into. Batch-norm goes into the convolution
before it, computed in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from tierline.core.types import Array


def chain_model(
    layers: Sequence[nn.Module],
    name: str,
    source: tuple[str, tuple[int, ...]],
    result: tuple[str, tuple[int, ...]],
    like: Any,
) -> bytes:
    """ONNX of layers run in a row; `source` and `result` are names and shapes without the batch axis. `like` is the
    ModelProto whose operator set it takes."""
    writer = _Writer(source[0])
    for index, layer in enumerate(layers):
        following = layers[index + 1] if index + 1 < len(layers) else None
        writer.add(layer, following if isinstance(following, nn.BatchNorm2d) else None)
    writer.nodes.append(helper.make_node("Identity", [writer.x], [result[0]], name=result[0]))
    into, out = (
        helper.make_tensor_value_info(key, TensorProto.FLOAT, ["batch", *shape]) for key, shape in (source, result)
    )
    graph = helper.make_graph(writer.nodes, name, [into], [out], initializer=writer.weights)
    model = helper.make_model(
        graph, opset_imports=like.opset_import, ir_version=like.ir_version, producer_name="tierline"
    )
    onnx.checker.check_model(model, full_check=True)
    raw: bytes = model.SerializeToString(deterministic=True)
    return raw


class _Writer:
    """One graph under construction; `x` is the tensor that the next layer reads."""

    def __init__(self, source: str) -> None:
        self.x = source
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def add(self, layer: nn.Module, norm: nn.BatchNorm2d | None) -> None:
        """`norm` is the batch-norm that follows a convolution; met alone it adds nothing more."""
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            op = "Conv" if isinstance(layer, nn.Conv2d) else "ConvTranspose"
            assert not isinstance(layer.padding, str)
            self._node(op, *_fold(layer, norm), strides=layer.stride, pads=[*layer.padding, *layer.padding])
        elif isinstance(layer, nn.ReLU):
            self._node("Relu")
        elif isinstance(layer, nn.AvgPool2d):
            self._node("AveragePool", kernel_shape=layer.kernel_size, strides=layer.stride)
        elif isinstance(layer, nn.Flatten):
            self._node("Flatten", axis=1)
        elif isinstance(layer, nn.Linear):
            self._node("Gemm", layer.weight.detach().numpy(), layer.bias.detach().numpy(), transB=1)
        else:
            assert isinstance(layer, nn.BatchNorm2d), f"no ONNX for {type(layer).__name__}"

    def _node(self, op: str, *weights: Array, **attributes: Any) -> None:
        names = []
        for value in weights:
            names.append(f"weight_{len(self.weights)}")
            self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), names[-1]))
        result = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, [self.x, *names], [result], name=result, **attributes))
        self.x = result


def _fold(layer: nn.Conv2d | nn.ConvTranspose2d, norm: nn.BatchNorm2d | None) -> tuple[Array, ...]:
    """Weight and bias of a convolution that does its batch-norm too."""
    weight = layer.weight.detach().double()
    if norm is None:
        bias = () if layer.bias is None else (layer.bias.detach().numpy(),)
        return layer.weight.detach().numpy(), *bias
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None and var is not None and layer.bias is None
    scale = norm.weight.detach().double() / (var.double() + norm.eps).sqrt()
    # The outputs are axis 0 of a convolution's weight, axis 1 of a transposed one's.
    by_output = (-1, 1, 1, 1) if isinstance(layer, nn.Conv2d) else (1, -1, 1, 1)
    folded = weight * scale.reshape(by_output)
    return folded.numpy(), (norm.bias.detach().double() - mean.double() * scale).numpy()
