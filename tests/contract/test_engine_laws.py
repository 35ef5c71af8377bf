"""Laws of every engine in the catalogue; `reference` is the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_models import model_of

from tierline.core import catalog
from tierline.core.errors import EngineError, MissingDependency, ShapeMismatch
from tierline.core.flow.engines import check_engine
from tierline.core.types import TensorSpec

RNG = np.random.default_rng(11)
X = ("feature", TensorProto.FLOAT, ["batch", 3, 8, 8])


def engine(name: str, model: bytes) -> Any:
    try:
        check_engine(name)
        return catalog.make("engine", name, model=model, name="section", threads=1)
    except MissingDependency as error:
        pytest.skip(str(error))


def weights(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def binary_block() -> bytes:
    """ConvP and FC blocks as DDNN has them: conv, pool, batch-norm, sign; then flatten and FC."""
    nodes = [
        helper.make_node("Conv", ["feature", "w", "b"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("MaxPool", ["conv"], ["pool"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["pool", "g", "beta", "mean", "var"], ["norm"], epsilon=1e-3),
        helper.make_node("GreaterOrEqual", ["norm", "zero"], ["mask"]),
        helper.make_node("Where", ["mask", "one", "minus"], ["sign"]),
        helper.make_node("Identity", ["norm"], ["out"]),
        helper.make_node("Flatten", ["sign"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc", "fb"], ["logits"], transB=1, alpha=0.5, beta=2.0),
    ]
    constants = {
        "w": weights(4, 3, 3, 3),
        "b": weights(4),
        "g": weights(4),
        "beta": weights(4),
        "mean": weights(4),
        "var": np.abs(weights(4)) + 0.5,
        "zero": np.array(0, np.float32),
        "one": np.array(1, np.float32),
        "minus": np.array(-1, np.float32),
        "fc": weights(5, 64),
        "fb": weights(5),
    }
    outputs = [("out", TensorProto.FLOAT, ["batch", 4, 4, 4]), ("logits", TensorProto.FLOAT, ["batch", 5])]
    return model_of(nodes, constants, [X], outputs)


def arithmetic() -> bytes:
    nodes = [
        helper.make_node("Constant", [], ["two"], value_float=2.0),
        helper.make_node("Mul", ["feature", "two"], ["a"]),
        helper.make_node("Sub", ["a", "k"], ["b"]),
        helper.make_node("Div", ["b", "two"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Sign", ["b"], ["e"]),
        helper.make_node("Add", ["d", "e"], ["f"]),
        helper.make_node("Less", ["f", "k"], ["less"]),
        helper.make_node("Greater", ["f", "k"], ["more"]),
        helper.make_node("Cast", ["less"], ["less_f"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["more"], ["more_f"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["f", "less_f", "more_f"], ["out"], axis=1),
    ]
    constants = {"k": weights(3, 1, 1)}
    return model_of(nodes, constants, [X], [("out", TensorProto.FLOAT, ["batch", 9, 8, 8])])


def shapes() -> bytes:
    nodes = [
        helper.make_node("Transpose", ["feature"], ["a"], perm=[0, 2, 3, 1]),
        helper.make_node("ReduceMean", ["a"], ["b"], axes=[1], keepdims=0),
        helper.make_node("Unsqueeze", ["b", "axes"], ["c"]),
        helper.make_node("Squeeze", ["c", "axes"], ["d"]),
        helper.make_node("Reshape", ["d", "rows"], ["e"]),
        helper.make_node("MatMul", ["e", "w"], ["out"]),
        helper.make_node("Shape", ["feature"], ["s"], end=1),
        helper.make_node("Concat", ["s", "rest"], ["t"], axis=0),
        helper.make_node("Reshape", ["feature", "t"], ["flat"]),
    ]
    constants = {
        "axes": np.array([-1], np.int64),
        "rows": np.array([0, 24], np.int64),
        "rest": np.array([192], np.int64),
        "w": weights(24, 7),
    }
    outputs = [("out", TensorProto.FLOAT, ["batch", 7]), ("flat", TensorProto.FLOAT, ["batch", 192])]
    return model_of(nodes, constants, [X], outputs)


def pooling() -> bytes:
    square = {"kernel_shape": [3, 3], "strides": [2, 2]}
    nodes = [
        helper.make_node("AveragePool", ["feature"], ["a"], pads=[1, 1, 1, 1], **square),
        helper.make_node("AveragePool", ["feature"], ["b"], pads=[0, 0, 1, 1], count_include_pad=1, **square),
        helper.make_node("MaxPool", ["feature"], ["c"], auto_pad="SAME_UPPER", **square),
        helper.make_node("Conv", ["feature", "w"], ["d"], pads=[0, 1, 2, 1], strides=[2, 2], group=3),
        helper.make_node("Concat", ["a", "b", "c", "d"], ["all"], axis=1),
        helper.make_node("GlobalAveragePool", ["all"], ["e"]),
        helper.make_node("Flatten", ["e"], ["out"]),
    ]
    outputs = [("all", TensorProto.FLOAT, ["batch", 12, 4, 4]), ("out", TensorProto.FLOAT, ["batch", 12])]
    return model_of(nodes, {"w": weights(3, 1, 3, 3)}, [X], outputs)


NAMES = catalog.names("engine")
GRAPHS = [binary_block, arithmetic, shapes, pooling]


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_the_reference_for_any_batch(name: str, graph: Callable[[], bytes]) -> None:
    model = graph()
    tried, oracle = engine(name, model), engine("reference", model)
    tried.warmup()
    for num_rows in (1, 3, 2):
        x_B = weights(num_rows, 3, 8, 8)
        outputs, expected = tried.run({"feature": x_B}), oracle.run({"feature": x_B})
        assert outputs.keys() == expected.keys() == tried.spec.outputs.keys()
        for key, spec in tried.spec.outputs.items():
            spec.check(outputs[key], key)
            np.testing.assert_allclose(outputs[key], expected[key], atol=1e-5)
    tried.close()


@pytest.mark.parametrize("name", NAMES)
def test_spec_drops_the_batch_axis(name: str) -> None:
    spec = engine(name, binary_block()).spec
    assert spec.inputs == {"feature": TensorSpec("float32", (3, 8, 8))}
    assert spec.outputs == {"out": TensorSpec("float32", (4, 4, 4)), "logits": TensorSpec("float32", (5,))}


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_gives_empty_outputs(name: str) -> None:
    outputs = engine(name, binary_block()).run({"feature": np.zeros((0, 3, 8, 8), np.float32)})
    assert {key: array.shape for key, array in outputs.items()} == {"out": (0, 4, 4, 4), "logits": (0, 5)}


@pytest.mark.parametrize("name", NAMES)
def test_any_memory_layout_is_taken_and_left_as_it_was(name: str) -> None:
    tried, x_B = engine(name, binary_block()), weights(2, 3, 8, 8)
    expected = tried.run({"feature": x_B})["logits"]
    read_only = x_B.copy()
    read_only.setflags(write=False)
    for same in (read_only, np.asfortranarray(x_B), np.repeat(x_B, 2, axis=3)[..., ::2], x_B[::-1].copy()[::-1]):
        before = same.copy()
        np.testing.assert_allclose(tried.run({"feature": same})["logits"], expected, atol=1e-5)
        assert np.array_equal(same, before)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_that_were_not_agreed_are_refused(name: str) -> None:
    tried, good = engine(name, binary_block()), weights(1, 3, 8, 8)
    wrong = [
        ({"feature": good.astype(np.float64)}, "section.feature"),
        ({"feature": good[:, :2]}, "section.feature"),
        ({"feature": good[0]}, "section.feature"),
        ({}, "feature"),
        ({"image": good}, "image"),
        ({"feature": good, "more": good}, "more"),
    ]
    for inputs, message in wrong:
        with pytest.raises(ShapeMismatch, match=message):
            tried.run(inputs)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_with_different_batches_are_refused(name: str) -> None:
    shape = ["batch", 2]
    values = [("a", TensorProto.FLOAT, shape), ("b", TensorProto.FLOAT, shape)]
    model = model_of([helper.make_node("Add", ["a", "b"], ["c"])], {}, values, [("c", TensorProto.FLOAT, shape)])
    with pytest.raises(ShapeMismatch, match="rows"):
        engine(name, model).run({"a": weights(1, 2), "b": weights(2, 2)})


@pytest.mark.parametrize("name", NAMES)
def test_broken_models_are_one_line_errors(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    parsed = onnx.load_model_from_string(binary_block())
    parsed.graph.node[0].input[1] = "nowhere"
    for model in (b"", b"not a model", binary_block()[:200], parsed.SerializeToString()):
        with pytest.raises(EngineError, match="section") as caught:
            engine(name, model)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", NAMES)
def test_unknown_operators_are_engine_errors(name: str) -> None:
    values = ("x", TensorProto.FLOAT, ["batch", 2]), ("y", TensorProto.FLOAT, ["batch", 2])
    node = helper.make_node("Frobnicate", ["x"], ["y"], name="strange", domain="our.own")
    graph = helper.make_graph([node], "g", *[[helper.make_tensor_value_info(*value)] for value in values])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("our.own", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    with pytest.raises(EngineError, match="Frobnicate"):
        engine(name, model).warmup()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [[1, 2], ["batch", "width"], []], ids=str)
def test_only_the_batch_axis_is_free(name: str, shape: list[Any]) -> None:
    values = ("x", TensorProto.FLOAT, shape), ("y", TensorProto.FLOAT, shape)
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], {}, [values[0]], [values[1]])
    with pytest.raises(EngineError, match="batch"):
        engine(name, model)


def test_the_torch_engine_names_node_and_operator() -> None:
    values = ("x", TensorProto.FLOAT, ["batch", 2]), ("y", TensorProto.FLOAT, ["batch", 2])
    model = model_of([helper.make_node("Erf", ["x"], ["y"], name="odd one")], {}, [values[0]], [values[1]])
    with pytest.raises(EngineError, match="'odd one' needs operator Erf"):
        engine("torch", model)
