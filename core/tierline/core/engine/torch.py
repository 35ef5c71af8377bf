"""Runs a Section's ONNX graph with torch operators, one node after the other.

It knows the operators that our models export; another one is an EngineError at load, naming node and operator. Operator
semantics follow the ONNX specification (opset 13 and later), where many inputs moved from attributes to tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from tierline.core.engine._check import batch_size, first_line, no_rows, zeros
from tierline.core.engine._onnx import parse, section_spec
from tierline.core.errors import EngineError
from tierline.core.types import FLOAT16, FLOAT32, INT8, Array, Arrays

Attributes = dict[str, Any]
Operator = Callable[..., Tensor]
"""Takes the node's attributes and then its inputs; an omitted optional input is None."""


class Torch:
    """Engine `torch`, on the CPU. `threads` is set for the whole process, as torch has no narrower setting."""

    def __init__(self, *, model: bytes, name: str, threads: int = 1) -> None:
        parsed = parse(model, name)
        self.spec = section_spec(parsed, name)
        self._name = name
        torch.set_num_threads(threads)
        self._constants = {t.name: _tensor(onnx.numpy_helper.to_array(t)) for t in parsed.graph.initializer}
        self._nodes: list[tuple[Any, Operator, Attributes]] = []
        for node in parsed.graph.node:
            operator = OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            if operator is None:
                known = f"node {node.name or node.output[0]!r} needs operator {node.domain}{node.op_type}"
                raise EngineError(f"{name}: {known}, which the torch engine does not know; use onnxruntime")
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            self._nodes.append((node, operator, attributes))

    @staticmethod
    def precisions() -> tuple[str, ...]:
        """int8 as rounded float32."""
        return FLOAT32, FLOAT16, INT8

    def warmup(self) -> None:
        self.run(zeros(self.spec, 1))

    def run(self, inputs: Arrays) -> Arrays:
        if batch_size(self.spec, inputs, self._name) == 0:
            return no_rows(self.spec)
        values: dict[str, Tensor] = dict(self._constants)
        values.update({key: _tensor(array) for key, array in inputs.items()})
        with torch.inference_mode():
            for node, operator, attributes in self._nodes:
                arguments = [values[key] if key else None for key in node.input]
                try:
                    values[node.output[0]] = operator(attributes, *arguments)
                except Exception as error:
                    where = f"node {node.name or node.output[0]!r} ({node.op_type})"
                    raise EngineError(f"{self._name}: {where}: {first_line(error)}") from error
        return {key: values[key].numpy() for key in self.spec.outputs}

    def close(self) -> None:
        """Nothing is held open."""


def _tensor(array: Array) -> Tensor:
    # torch warns about arrays it could write through, and refuses negative strides
    owned = array if array.flags.writeable and array.flags.c_contiguous else array.copy()
    return torch.from_numpy(owned)


def _padding(a: Attributes, x: Tensor, kernel: Sequence[int], strides: Sequence[int], value: float) -> Tensor:
    """`x` padded as `pads` or `auto_pad` say, so that operators run without padding of their own."""
    rank = len(kernel)
    begin, end = list(a.get("pads", [0] * 2 * rank))[:rank], list(a.get("pads", [0] * 2 * rank))[rank:]
    auto = a.get("auto_pad", b"NOTSET")
    if auto in (b"SAME_UPPER", b"SAME_LOWER"):
        for i, size in enumerate(x.shape[2:]):
            total = max((-(-size // strides[i]) - 1) * strides[i] + kernel[i] - size, 0)
            small, large = total // 2, total - total // 2
            begin[i], end[i] = (small, large) if auto == b"SAME_UPPER" else (large, small)
    if not any(begin + end):
        return x
    pairs = [amount for i in reversed(range(rank)) for amount in (begin[i], end[i])]
    return nn.functional.pad(x, pairs, value=value)


def _conv(a: Attributes, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = w.ndim - 2
    strides, dilations = a.get("strides", [1] * rank), a.get("dilations", [1] * rank)
    extent = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    x = _padding(a, x, extent, strides, 0.0)
    conv = {1: nn.functional.conv1d, 2: nn.functional.conv2d, 3: nn.functional.conv3d}[rank]
    return conv(x, w, bias, stride=strides, dilation=dilations, groups=a.get("group", 1))


def _max_pool(a: Attributes, x: Tensor) -> Tensor:
    kernel = a["kernel_shape"]
    strides, dilations = a.get("strides", [1] * len(kernel)), a.get("dilations", [1] * len(kernel))
    _refuse_ceil(a)
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    x = _padding(a, x, extent, strides, -torch.inf)
    pool = {1: nn.functional.max_pool1d, 2: nn.functional.max_pool2d, 3: nn.functional.max_pool3d}[len(kernel)]
    return pool(x, kernel, strides, dilation=dilations)


def _average_pool(a: Attributes, x: Tensor) -> Tensor:
    kernel = a["kernel_shape"]
    strides = a.get("strides", [1] * len(kernel))
    _refuse_ceil(a)
    pool = {1: nn.functional.avg_pool1d, 2: nn.functional.avg_pool2d, 3: nn.functional.avg_pool3d}[len(kernel)]
    mean = pool(_padding(a, x, kernel, strides, 0.0), kernel, strides)
    if a.get("count_include_pad", 0):
        return mean
    counted = pool(_padding(a, torch.ones_like(x), kernel, strides, 0.0), kernel, strides)
    return mean / counted


def _refuse_ceil(a: Attributes) -> None:
    if a.get("ceil_mode", 0):
        raise NotImplementedError("ceil_mode=1 is not supported")


def _gemm(a: Attributes, x: Tensor, w: Tensor, c: Tensor | None = None) -> Tensor:
    left = x.T if a.get("transA", 0) else x
    right = w.T if a.get("transB", 0) else w
    product: Tensor = a.get("alpha", 1.0) * (left @ right)
    return product if c is None else product + a.get("beta", 1.0) * c


def _batch_norm(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return nn.functional.batch_norm(x, mean, var, scale, bias, training=False, eps=a.get("epsilon", 1e-5))


def _reshape(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    sizes = [int(n) for n in shape]
    if not a.get("allowzero", 0):
        sizes = [x.shape[i] if n == 0 else n for i, n in enumerate(sizes)]
    return x.reshape(sizes)


def _flatten(a: Attributes, x: Tensor) -> Tensor:
    axis = a.get("axis", 1) % (x.ndim + 1)
    return x.reshape(int(np.prod(x.shape[:axis], dtype=np.int64)), -1)


def _constant(a: Attributes) -> Tensor:
    (kind, value), *_ = a.items()
    if kind == "value":
        return _tensor(onnx.numpy_helper.to_array(value))
    if kind in ("value_float", "value_floats"):
        return torch.tensor(value, dtype=torch.float32)
    if kind in ("value_int", "value_ints"):
        return torch.tensor(value, dtype=torch.int64)
    raise NotImplementedError(f"a constant given as {kind}")


def _cast(a: Attributes, x: Tensor) -> Tensor:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(a["to"])
    return x.to(torch.from_numpy(np.empty(0, dtype)).dtype)


def _quantize(a: Attributes, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """`saturate(round(x / scale) + zero)`, halves to even."""
    zero = torch.zeros((), dtype=torch.uint8) if zero is None else zero
    if zero.dtype not in (torch.int8, torch.uint8):
        raise NotImplementedError(f"quantised values of {zero.dtype}")
    info = torch.iinfo(zero.dtype)
    q = torch.round(x / _along(scale, x, a)) + _along(zero, x, a)
    return q.clamp(info.min, info.max).to(zero.dtype)


def _dequantize(a: Attributes, q: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    shifted = q.to(scale.dtype) if zero is None else q.to(scale.dtype) - _along(zero, q, a)
    return shifted * _along(scale, q, a)


def _along(values: Tensor, x: Tensor, a: Attributes) -> Tensor:
    """One value per channel, or one for all."""
    if values.numel() == 1:
        return values.reshape(())
    shape = [1] * x.ndim
    shape[a.get("axis", 1)] = -1
    return values.reshape(shape)


def _reduce_mean(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    dims = _axes(a, axes)
    if not dims and a.get("noop_with_empty_axes", 0):
        return x
    return x.mean(dim=dims or list(range(x.ndim)), keepdim=bool(a.get("keepdims", 1)))


def _squeeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    dims = _axes(a, axes)
    return x.squeeze(dims) if dims else x.squeeze()


def _unsqueeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    dims = _axes(a, axes)
    rank = x.ndim + len(dims)
    for axis in sorted(axis % rank for axis in dims):
        x = x.unsqueeze(axis)
    return x


def _axes(a: Attributes, axes: Tensor | None) -> list[int]:
    return [int(axis) for axis in (a.get("axes", []) if axes is None else axes)]


def _transpose(a: Attributes, x: Tensor) -> Tensor:
    return x.permute(a.get("perm", tuple(reversed(range(x.ndim)))))


OPERATORS: dict[str, Operator] = {
    "Add": lambda a, x, y: x + y,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Concat": lambda a, *xs: torch.cat(xs, dim=a["axis"]),
    "Constant": _constant,
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Div": lambda a, x, y: torch.div(x, y, rounding_mode=None if x.is_floating_point() else "trunc"),
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda a, x: x.mean(dim=list(range(2, x.ndim)), keepdim=True),
    "Greater": lambda a, x, y: x > y,
    "GreaterOrEqual": lambda a, x, y: x >= y,
    "Identity": lambda a, x: x,
    "Less": lambda a, x, y: x < y,
    "MatMul": lambda a, x, y: x @ y,
    "MaxPool": _max_pool,
    "Mul": lambda a, x, y: x * y,
    "QuantizeLinear": _quantize,
    "ReduceMean": _reduce_mean,
    "Relu": lambda a, x: torch.relu(x),
    "Reshape": _reshape,
    "Shape": lambda a, x: torch.tensor(x.shape[a.get("start", 0) : a.get("end", x.ndim)], dtype=torch.int64),
    "Sign": lambda a, x: torch.sign(x),
    "Squeeze": _squeeze,
    "Sub": lambda a, x, y: x - y,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": lambda a, condition, x, y: torch.where(condition, x, y),
}
