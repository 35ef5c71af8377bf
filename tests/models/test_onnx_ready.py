"""Files as exporters write them: a fixed batch is freed where the graph allows, and the rest is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tierline.core import catalog
from tierline.core.errors import BundleError
from tierline.models.cut import cut
from tierline.models.graph import network_of


def model_of(nodes: list[Any], shape: tuple[int, ...], out: tuple[int, ...], **weights: Any) -> Any:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model: bytes, x_B: Any) -> Any:
    engine = catalog.make("engine", "onnxruntime", model=model, name="test", threads=1)
    return next(iter(engine.run({next(iter(engine.spec.inputs)): x_B}).values()))


WEIGHT = np.random.default_rng(3).normal(size=(12, 5)).astype(np.float32)


@pytest.mark.parametrize("num_rows", [1, 4])
@pytest.mark.parametrize("to", ["flat", "grid", "constant node"])
def test_a_fixed_batch_is_freed(num_rows: int, to: str) -> None:
    """As `x.view(1, -1)`, `x.view(1, 2, 6)` and the like come out of an exporter; a Reshape's shape is a constant."""
    shape = {"flat": [num_rows, -1], "grid": [num_rows, 2, 6], "constant node": [num_rows, 12]}[to]
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Reshape", ["r", "s"], ["f"])]
    weights: dict[str, Any] = {"w": WEIGHT, "flat": [0, 12]}
    if to == "constant node":
        nodes.insert(0, helper.make_node("Constant", [], ["s"], value=numpy_helper.from_array(np.array(shape))))
    else:
        weights["s"] = shape
    nodes += [helper.make_node("Reshape", ["f", "flat"], ["g"]), helper.make_node("MatMul", ["g", "w"], ["y"])]
    network = network_of(model_of(nodes, (num_rows, 3, 4), (num_rows, 5), **weights), "net.onnx")
    x_B = np.random.default_rng(1).normal(size=(7, 3, 4)).astype(np.float32)
    expected = np.maximum(x_B, 0).reshape(7, 12) @ WEIGHT
    found = x_B
    for piece in cut(network, [("r",), ("f",)]):
        found = run(piece.model, found)
    assert found.shape == (7, 5) and np.abs(found - expected).max() < 1e-5


def test_nodes_are_put_in_order() -> None:
    nodes = [helper.make_node("Relu", ["t"], ["y"]), helper.make_node("Neg", ["x"], ["t"])]
    network = network_of(model_of(nodes, (1, 3), (1, 3)), "net.onnx")
    assert [node.op for node in network.nodes] == ["Neg", "Relu"]


@pytest.mark.parametrize(
    ("nodes", "weights", "says"),
    [
        (
            [helper.make_node("Reshape", ["x", "s"], ["t"]), helper.make_node("ReduceSum", ["t", "a"], ["y"])],
            {"s": [3, 4], "a": [0]},
            r"exported for a fixed batch of 1, .*\(tensor 'y' has shape \[1, 4\]\)$",
        ),
        (
            [
                helper.make_node("Add", ["x", "p"], ["t"], name="add_7"),
                helper.make_node("Softmax", ["t"], ["y"], axis=0),
            ],
            {"p": np.ones((1, 4), np.float32)},
            r"exported for a fixed batch of 1, .*\(output 'y' is another one in a batch of 2\)$",
        ),
        (
            [
                helper.make_node("Expand", ["c", "s"], ["t"]),
                helper.make_node("Concat", ["t", "x"], ["y"], axis=1, name="join_tokens"),
            ],
            {"c": np.ones((1, 2), np.float32), "s": [1, 2]},
            r"exported for a fixed batch of 1, .*\(tensor 'y' has shape \[1, 6\]\)$",
        ),
    ],
    ids=["rows in a Reshape", "over the batch", "a token for one row"],
)
def test_a_batch_that_is_woven_in_is_refused_where_it_shows(nodes: list[Any], weights: Any, says: str) -> None:
    shape = (1, 12) if "s" in weights and len(weights) == 2 and "a" in weights else (1, 4)
    width = {"ReduceSum": 4, "Softmax": 4, "Concat": 6}[nodes[-1].op_type]
    with pytest.raises(BundleError, match=rf"^net\.onnx: {says}") as caught:
        network_of(model_of(nodes, shape, (1, width), **weights), "net.onnx")
    assert "\n" not in str(caught.value)


def test_operators_and_tensors_that_are_not_there_are_named() -> None:
    for node, says in (
        (helper.make_node("Gizmo", ["x"], ["y"], name="g1"), r"unsupported operator Gizmo 'g1': ONNX, opset 17 has"),
        (helper.make_node("Add", ["x", "lost"], ["y"]), r"tensor 'lost' is read, and no node makes it"),
    ):
        with pytest.raises(BundleError, match=rf"^net\.onnx: .*{says}"):
            network_of(model_of([node], (1, 4), (1, 4)), "net.onnx")


def test_a_model_that_is_ready_is_left_alone() -> None:
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], (1, 4), (1, 4))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    assert (
        network_of(model, "net.onnx").model.SerializeToString()
        == onnx.inliner.inline_local_functions(model).SerializeToString()
    )
