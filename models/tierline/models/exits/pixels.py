"""The image itself as what crosses a link: preprocessing undone below it and done again above, as ONNX.

Codecs of images take uint8 and nothing else. Preprocessing is x = p scale + offset per channel (`core.preprocess`), so
p = round((x - offset) / scale) gives back the pixels exactly. B batch, C channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tierline.core.bundle import Preprocess, Tensor
from tierline.core.coding import codec_for

_OPSET, _IR = 17, 8


def is_of_pixels(token: str) -> bool:
    """Whether a codec takes images only."""
    return tuple(codec_for(token).dtypes) == ("uint8",)


def to_pixels(preprocess: Preprocess, tensor: Tensor) -> Any:
    """A model from what the network takes to uint8 of the same shape."""
    scale, offset = _constants(preprocess)
    weights = {"back": 1 / scale, "offset": offset, "low": np.float32(0), "high": np.float32(255)}
    nodes = [
        helper.make_node("Sub", ["x", "offset"], ["moved"]),
        helper.make_node("Mul", ["moved", "back"], ["scaled"]),
        helper.make_node("Round", ["scaled"], ["whole"]),
        helper.make_node("Clip", ["whole", "low", "high"], ["bounded"]),
        helper.make_node("Cast", ["bounded"], ["y"], to=TensorProto.UINT8),
    ]
    return _model("to-pixels", nodes, weights, tensor, (TensorProto.FLOAT, TensorProto.UINT8))


def from_pixels(preprocess: Preprocess, tensor: Tensor) -> Any:
    """A model from uint8 to what the network takes, with the numbers of `core.preprocess`."""
    scale, offset = _constants(preprocess)
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["wide", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["y"]),
    ]
    weights = {"scale": scale, "offset": offset}
    return _model("from-pixels", nodes, weights, tensor, (TensorProto.UINT8, TensorProto.FLOAT))


def _constants(preprocess: Preprocess) -> tuple[Any, Any]:
    mean, std = (np.asarray(values, np.float64)[:, None, None] for values in (preprocess.mean, preprocess.std))
    return (1.0 / (255.0 * std)).astype(np.float32), (-mean / std).astype(np.float32)


def _model(name: str, nodes: list[Any], weights: dict[str, Any], tensor: Tensor, kinds: tuple[int, int]) -> Any:
    into, out = (
        helper.make_tensor_value_info(key, kind, ["batch", *tensor.shape])
        for key, kind in zip(("x", "y"), kinds, strict=True)
    )
    constants = [numpy_helper.from_array(np.asarray(value), key) for key, value in weights.items()]
    graph = helper.make_graph(nodes, name, [into], [out], initializer=constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
    onnx.checker.check_model(model)
    return model
