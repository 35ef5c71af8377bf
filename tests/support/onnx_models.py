"""Small ONNX models for tests, written node by node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
Value = tuple[str, int, Sequence[Any]]


def model_of(
    nodes: list[Any], constants: dict[str, np.ndarray], inputs: list[Value], outputs: list[Value], *domains: str
) -> bytes:
    """`domains`: of operators beside ONNX's own."""
    graph = helper.make_graph(
        nodes,
        "section",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return bytes(model.SerializeToString())


def conv_relu() -> bytes:
    """`x` float32[B, 1, 8, 8] to `y` float32[B, 4, 8, 8]."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    weights = np.random.default_rng(3).normal(size=(4, 1, 3, 3)).astype(np.float32)
    return model_of(nodes, {"w": weights}, [("x", FLOAT, ["b", 1, 8, 8])], [("y", FLOAT, ["b", 4, 8, 8])])


def gemm(dtype: Any = np.float32) -> bytes:
    """`x` [B, 64] to `y` [B, 10], of float32 or float16."""
    kind = HALF if dtype is np.float16 else FLOAT
    weights = np.random.default_rng(4).normal(size=(64, 10)).astype(dtype)
    node = helper.make_node("Gemm", ["x", "w"], ["y"], name="dense")
    return model_of([node], {"w": weights}, [("x", kind, ["b", 64])], [("y", kind, ["b", 10])])


def relu(*shape: Any) -> bytes:
    """One operator on a tensor of this shape."""
    node = helper.make_node("Relu", ["x"], ["y"])
    return model_of([node], {}, [("x", FLOAT, shape)], [("y", FLOAT, shape)])


def unknown_operator() -> bytes:
    node = helper.make_node("Frobnicate", ["x"], ["y"], name="strange", domain="our.own")
    return model_of([node], {}, [("x", FLOAT, ["b", 2])], [("y", FLOAT, ["b", 2])], "our.own")
