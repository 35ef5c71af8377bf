"""FP16: weights and tensors between operators as half, what enters and leaves the Section as it was.

Float32 stay: operators whose sums, powers or statistics leave half's range or precision (softmax, reductions,
normalisation, exponentials), comparisons and signs, which a rounded value may turn, and every operator that a value
beyond half's range goes into or comes out of, by its weights or on calibration samples, of which a quarter of that
range is asked. Casts stand between both kinds, one per tensor, so the file is strongly typed as TensorRT wants it.

Why not a package: NVIDIA ModelOpt's AutoCast does this with packages of a gigabyte; `onnxconverter-common` and
`onnxruntime.transformers.float16` choose by operator alone, without samples, and move input scales of some operators.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LARGEST = 65504.0
"""Of half's finite values."""
_ROOM = 4.0
"""Values beyond a quarter of it were too near on the samples."""
_EXACT = frozenset((
    "Softmax", "LogSoftmax", "Hardmax", "Exp", "Log", "Pow", "Sqrt", "Reciprocal", "Erf", "CumSum", "GlobalAveragePool",
    "BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization", "LpNormalization",
    "MeanVarianceNormalization", "LRN", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "Sign", "Floor",
    "Ceil", "Round", "ArgMax", "ArgMin", "TopK", "NonMaxSuppression", "Cast", "Constant", "ConstantOfShape", "Range",
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Resize",
))  # fmt: skip
_OF_ANY_TYPE = frozenset(("Shape", "Size"))


def halved(model: Any, ranges: Mapping[str, float]) -> Any:
    """The model in half; `ranges`: largest absolute value of every float32 tensor (`ranges.largest`)."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    _Halver(made.graph, ranges).run()
    return made


class _Halver:
    def __init__(self, graph: Any, ranges: Mapping[str, float]) -> None:
        self._graph = graph
        self._weights = {t.name: t for t in graph.initializer if t.data_type == TensorProto.FLOAT}
        self._ranges = dict(ranges)
        for key, tensor in self._weights.items():
            # Weights are known, and need no room.
            self._ranges[key] = float(np.abs(numpy_helper.to_array(tensor)).max(initial=0.0)) / _ROOM
        self._single = {value.name for value in graph.input} | {*self._weights}
        """Tensors that are there as float32; the others of `ranges` as half alone so far."""
        self._half: set[str] = set()
        self._nodes: list[Any] = []
        self._more: list[Any] = []

    def run(self) -> None:
        graph = self._graph
        for node in graph.node:
            if node.op_type in _OF_ANY_TYPE:
                node.input[:] = [
                    key if key in self._single or key not in self._half else _half(key) for key in node.input
                ]
                self._nodes.append(node)
            elif self._stays(node):
                for key in node.input:
                    self._want_single(key)
                self._nodes.append(node)
                self._single.update(node.output)
            else:
                node.input[:] = [self._want_half(key) for key in node.input]
                given = [key for key in node.output if key in self._ranges]
                node.output[:] = [_half(key) if key in given else key for key in node.output]
                self._half.update(given)
                self._nodes.append(node)
        for value in graph.output:
            self._want_single(value.name)
        used = {key for node in self._nodes for key in node.input}
        kept = [tensor for tensor in [*graph.initializer, *self._more] if tensor.name in used]
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in self._nodes]
        initialisers = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
        del graph.node[:]
        del graph.initializer[:]
        del graph.value_info[:]
        graph.node.extend(nodes)
        graph.initializer.extend(initialisers)

    def _stays(self, node: Any) -> bool:
        if node.op_type in _EXACT or node.op_type.startswith("Reduce") or node.domain not in ("", "ai.onnx"):
            return True
        if node.op_type == "Identity" and node.input[0] in self._single:  # what passes through loses nothing
            return True
        found = [self._ranges[key] for key in (*node.input, *node.output) if key in self._ranges]
        return not found or max(found) * _ROOM > LARGEST

    def _want_half(self, key: str) -> str:
        """The name of a tensor's half; other types are what they are."""
        if key not in self._ranges:
            return key
        if key not in self._half:
            self._half.add(key)
            if key in self._weights:
                w = numpy_helper.to_array(self._weights[key]).astype(np.float16)
                self._more.append(numpy_helper.from_array(w, _half(key)))
            else:
                self._cast(key, _half(key), TensorProto.FLOAT16)
        return _half(key)

    def _want_single(self, key: str) -> None:
        if key in self._half and key not in self._single:
            self._cast(_half(key), key, TensorProto.FLOAT)
            self._single.add(key)

    def _cast(self, source: str, target: str, dtype: int) -> None:
        self._nodes.append(helper.make_node("Cast", [source], [target], f"{target}/cast", to=dtype))


def _half(key: str) -> str:
    return f"{key}/float16"
