"""Networks read from ONNX and cut: the Sections, one after the other, give what the whole network gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from own_nets import SHAPES, make_network

from tierline.core import catalog
from tierline.core.errors import BundleError, ConfigError
from tierline.models.cut import cut
from tierline.models.graph import Network, network_of, read_network
from tierline.models.torch_export import load_module


@pytest.fixture(scope="module")
def networks() -> dict[str, Network]:
    return {name: make_network(name) for name in SHAPES}


def run(model: bytes, x_B: Any) -> Any:
    engine = catalog.make("engine", "onnxruntime", model=model, name="test", threads=1)
    return next(iter(engine.run({next(iter(engine.spec.inputs)): x_B}).values()))


def assert_same(network: Network, after: list[tuple[str, ...]]) -> None:
    x_B = np.random.default_rng(1).normal(size=(3, *network.tensors[network.input].shape)).astype(np.float32)
    whole, found = run(network.model.SerializeToString(), x_B), x_B
    for piece in cut(network, after):
        (source, tensor), (_, result) = *piece.section.inputs.items(), *piece.section.outputs.items()
        assert found.shape[1:] == tensor.shape and source == ("image" if found is x_B else "fused")
        found = run(piece.model, found)
        assert found.shape[1:] == result.shape
    assert np.abs(found - whole).max() < 1e-5
    assert np.abs(whole).max() > 1e-2


@pytest.mark.parametrize("name", SHAPES)
def test_every_single_cut_gives_the_uncut_outputs(networks: dict[str, Network], name: str) -> None:
    points = networks[name].cut_points()
    assert len(points) >= {"mlp": 4, "lenet": 9, "residual": 6}[name]
    for point in points:
        assert_same(networks[name], [point.tensors])


@pytest.mark.parametrize("name", SHAPES)
def test_three_sections(networks: dict[str, Network], name: str) -> None:
    points = networks[name].cut_points()
    assert_same(networks[name], [points[1].tensors, points[-2].tensors])


def test_a_cut_through_several_tensors(networks: dict[str, Network]) -> None:
    """Within a residual block two tensors cross; within two cuts, one of them passes through a Section."""
    network = networks["residual"]
    wide = [point for point in network.cut_points(most=2) if len(point.tensors) == 2]
    assert wide
    assert_same(network, [wide[0].tensors])
    assert_same(network, [wide[0].tensors, wide[1].tensors])


def test_cut_points_know_their_bytes_and_work(networks: dict[str, Network]) -> None:
    points = networks["lenet"].cut_points()
    assert points[0].tensors == ("image",) and points[0].share_below == 0.0 and points[0].num_bytes == 4 * 28 * 28
    shares = [point.share_below for point in points]
    assert shares == sorted(shares) and 0.9 < shares[-1] < 1.0
    assert {4 * 6 * 14 * 14, 4 * 16 * 5 * 5, 4 * 120, 4 * 84} <= {point.num_bytes for point in points}
    convolutions = [node.macs for node in networks["lenet"].nodes if node.op == "Conv"]
    assert convolutions == [6 * 25 * 28 * 28, 16 * 6 * 25 * 10 * 10]


def test_cuts_that_cannot_be_made_are_named(networks: dict[str, Network]) -> None:
    network, resnet = networks["lenet"], networks["residual"]
    points = network.cut_points()
    with pytest.raises(BundleError, match=r"^lenet: no tensor 'nowhere' to cut at; `tierline model cuts` lists them$"):
        cut(network, [("nowhere",)])
    with pytest.raises(BundleError, match=r"cut 2 is not above the one before it"):
        cut(network, [points[5].tensors, points[2].tensors])
    wide = next(point for point in resnet.cut_points(most=2) if len(point.tensors) == 2)
    with pytest.raises(BundleError, match=r"leaves another way past it, over"):
        cut(resnet, [(max(wide.tensors, key=lambda name: resnet.maker().get(name, -1)),)])


def model_of(nodes: list[Any], batch: Any = "batch", side: Any = 4, width: Any = "width", **weights: Any) -> Any:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", width])],
        [onnx.numpy_helper.from_array(value, key) for key, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


RELU = helper.make_node("Relu", ["x"], ["y"])


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (model_of([RELU], side="side"), r"input 'x' is \(\?, \?\)"),
        (
            model_of([helper.make_node("NonZero", ["x"], ["n"]), helper.make_node("Cast", ["n"], ["y"], to=1)]),
            "by values",
        ),
        (
            model_of([helper.make_node("Relu", ["x"], ["r"], domain="mine"), helper.make_node("Relu", ["r"], ["y"])]),
            r"unsupported operator Relu 'r': domain 'mine' has none",
        ),
        (
            model_of([helper.make_node("Relu", ["z"], ["y"]), helper.make_node("Relu", ["y"], ["z"])]),
            "cyclic graph: z -> y -> z",
        ),
        (model_of([helper.make_node("Relu", ["w"], ["y"])], w=np.ones((2, 2), np.float32)), "output 'y'"),
    ],
    ids=["free-side", "by-values", "unknown-operator", "cyclic", "constant"],
)
def test_what_cannot_be_cut_is_refused_in_a_line(model: Any, says: str) -> None:
    with pytest.raises(BundleError, match=rf"^net\.onnx: .*{says}") as caught:
        network_of(model, "net.onnx")
    assert "\n" not in str(caught.value)


def test_a_shape_computed_by_nodes_stays_below_or_above() -> None:
    """What the exporter of older torch makes of `x.view(x.size(0), -1)`."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Shape", ["r"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["b"], axis=0),
        helper.make_node("Concat", ["b", "rest"], ["t"], axis=0),
        helper.make_node("Reshape", ["r", "t"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    weights = {"zero": np.array([0]), "rest": np.array([4]), "w": np.eye(4, 3, dtype=np.float32)}
    network = network_of(model_of(nodes, width=3, **weights), "view")
    assert [point.tensors for point in network.cut_points()] == [("x",), ("r",), ("f",)]
    assert_same(network, [("r",)])
    assert_same(network, [("f",)])


def test_files_that_are_no_networks(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    with pytest.raises(BundleError, match=r"a\.onnx: cannot be read as ONNX"):
        read_network(path)
    path.write_bytes(b"not at all")
    with pytest.raises(BundleError, match=r"a\.onnx: "):
        read_network(path)


def test_modules_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_net.py").write_text("import torch\nNet = lambda: torch.nn.Linear(2, 3)\nnet = Net()\nword = 'w'\n")
    assert isinstance(load_module("own_net:Net"), torch.nn.Linear)
    assert isinstance(load_module("own_net:net"), torch.nn.Linear)
    for spec, says in (
        ("own_net:nix", "has no 'nix'"),
        ("no_net:Net", "cannot be imported"),
        ("own_net:word", "is a str"),
    ):
        with pytest.raises(ConfigError, match=says):
            load_module(spec)
    with pytest.raises(ConfigError, match="without arguments"):
        load_module("torch.nn:Linear")
