"""Sections in float16, int8 and float8: as near to float32 as is stated, on every engine, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx_models import model_of, relu
from tiny_bundle import images, make_tiny_bundle
from trained import lenet_mnist

from tierline.core import catalog
from tierline.core.bundle import Bundle
from tierline.core.candidates import candidates_of
from tierline.core.errors import BundleError, ConfigError
from tierline.core.flow.engines import precisions_of
from tierline.core.flow.levels import LOGITS, Levels, engine_maker
from tierline.core.preprocess import Preprocessor
from tierline.core.types import FLOAT8_E4M3, FLOAT16, FLOAT32, INT8
from tierline.models.exits.derive import section_between
from tierline.models.precision.bundle import add_precisions, cut_rows, section_rows
from tierline.models.precision.convert import convert
from tierline.models.precision.ranges import largest
from tierline.models.torch_export import export

TOLERANCE = {FLOAT16: 0.005, INT8: 0.1, FLOAT8_E4M3: 0.25}
"""Largest difference from float32 by the largest value of the output, as docs/engines.md states it."""
AMPLIFIED = {"vgg11": 2, "mobile": 6}
"""Untrained networks without shortcuts make what is wrong at their beginning larger at their end."""
NETS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "lenet": ((1, 28, 28), {}),
    "mlp": ((1, 8, 8), {}),
    "mnist_cnn": ((1, 12, 12), {}),
    "mobile": ((3, 16, 16), {"width": 0.25, "reduction": 2}),
    "resnet20": ((3, 8, 8), {}),
    "vgg11": ((3, 32, 32), {"width": 0.125}),
}
RNG = np.random.default_rng(3)
X = ("x", TensorProto.FLOAT, ["batch", 4])


def weights(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (scale * RNG.normal(size=shape)).astype(np.float32)


@cache
def net(name: str) -> tuple[bytes, np.ndarray, np.ndarray]:
    """A network whose weights are as large as a trained one's, samples, and what float32 makes of them."""
    shape, options = NETS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made = catalog.make("model", name, input_shape=shape, num_classes=5, **options)
        for parameter in made.parameters():
            if parameter.ndim > 1:
                torch.nn.init.kaiming_normal_(parameter)
        for module in made.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # the mean over what it saw
        made.train()
        with torch.no_grad():
            made(torch.randn(64, *shape))
        model = export(made, shape)
    x_B = np.random.default_rng(2).normal(size=(24, *shape)).astype(np.float32)
    return model, x_B, run("onnxruntime", model, x_B)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """LeNet on MNIST, cut into pieces."""
    return lenet_mnist(tmp_path_factory.mktemp("lenet"))


@pytest.fixture(scope="module")
def whole(trained: Bundle) -> tuple[bytes, np.ndarray]:
    """All of it as one Section, and the samples that its Bundle keeps."""
    cuts = candidates_of(trained.manifest).cuts
    files = {cut.piece.file: trained.read(cut.piece.file) for cut in cuts if cut.piece is not None}
    _, model = section_between(cuts, None, files, "whole", is_first=True)
    return model, cut_rows(trained)["input"]


def error_of(found_B: np.ndarray, expected_B: np.ndarray) -> float:
    return float(np.abs(found_B - expected_B).max() / np.abs(expected_B).max())


def run(engine: str, model: bytes, x_B: np.ndarray) -> np.ndarray:
    made = catalog.make("engine", engine, model=model, name="section", threads=1)
    (y_B,) = made.run({next(iter(made.spec.inputs)): x_B}).values()
    made.close()
    return np.asarray(y_B)


def operators(model: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_model_from_string(model).graph.node]


@pytest.mark.slow
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("name", NETS)
def test_networks_of_the_zoo_agree_with_float32(name: str, precision: str) -> None:
    """On the calibration samples and on others; the engines with one another."""
    model, x_B, expected_B = net(name)
    made = convert(model, [precision], {"image": x_B[:16]}, name)[precision]
    engines = ["reference"] if precision == FLOAT8_E4M3 else ["onnxruntime", "torch"]
    if name == "resnet20" and precision != FLOAT8_E4M3:
        engines.remove("torch")  # which has no Slice
    some = slice(14, 18) if precision == FLOAT8_E4M3 else slice(None)
    for engine in engines:
        found_B = run(engine, made, x_B[some])
        assert found_B.dtype == np.float32
        assert 0 < error_of(found_B, expected_B[some]) < TOLERANCE[precision] * AMPLIFIED.get(name, 1), engine


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lenet", "resnet20", "mobile", "vgg11"])
def test_onnxruntime_computes_every_convolution_in_integers(name: str, tmp_path: Path) -> None:
    model, x_B, _ = net(name)
    made = convert(model, [INT8], {"image": x_B}, name)[INT8]
    found = optimised(made, tmp_path / "optimised.onnx")
    assert "QLinearConv" in found
    assert not {"Conv", "FusedConv"} & set(found)


@pytest.mark.parametrize("precision", TOLERANCE)
def test_every_engine_agrees_with_float32_on_a_trained_network(whole: tuple[bytes, np.ndarray], precision: str) -> None:
    """Calibrated on some samples, tried on others; the oracle in the file's own precision beside the engines."""
    model, x_B = whole
    made = convert(model, [precision], {"image": x_B[:32]}, "lenet")[precision]
    expected_B = run("reference", model, x_B[32:36])
    engines = [name for name in ("reference", "onnxruntime", "torch") if precision in precisions_of(name)]
    assert len(engines) == (1 if precision == FLOAT8_E4M3 else 3)
    for engine in engines:
        assert 0 < error_of(run(engine, made, x_B[32:36]), expected_B) < TOLERANCE[precision], engine


def test_answers_of_a_trained_network_stay(whole: tuple[bytes, np.ndarray]) -> None:
    model, x_B = whole
    expected_B = run("onnxruntime", model, x_B).argmax(axis=1)
    for precision, made in convert(model, [FLOAT16, INT8], {"image": x_B[:32]}, "lenet").items():
        assert (run("onnxruntime", made, x_B).argmax(axis=1) == expected_B).mean() > 0.98, precision


def test_pieces_one_after_the_other_are_the_joined_section(trained: Bundle, whole: tuple[bytes, np.ndarray]) -> None:
    """So what a precision costs may be measured on pieces."""
    model, x_B = whole
    rows, found_B = cut_rows(trained), x_B
    cuts = candidates_of(trained.manifest).cuts
    for below, cut in pairwise(cuts):
        assert cut.piece is not None
        source = next(iter(cut.piece.inputs))
        piece = convert(trained.read(cut.piece.file), [INT8], {source: rows[below.name]}, cut.name)[INT8]
        found_B = run("onnxruntime", piece, found_B)
    joined_B = run("onnxruntime", convert(model, [INT8], {"image": x_B}, "whole")[INT8], x_B)
    assert error_of(found_B, joined_B) < 0.03
    assert (found_B.argmax(axis=1) == joined_B.argmax(axis=1)).mean() > 0.98


def test_files_shrink_and_are_the_same_when_made_again(whole: tuple[bytes, np.ndarray]) -> None:
    model, x_B = whole
    once, again = (convert(model, [FLOAT32, *TOLERANCE], {"image": x_B}, "lenet") for _ in range(2))
    assert once == again
    assert once[FLOAT32] == model
    assert len(once[FLOAT16]) < 0.6 * len(model)
    assert max(len(once[INT8]), len(once[FLOAT8_E4M3])) < 0.4 * len(model)


def optimised(model: bytes, path: Path) -> list[str]:
    """Operators that ONNX Runtime makes of a file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(path).graph.node]


def test_a_sum_with_a_shortcut_is_computed_in_integers_around_it(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "v"], ["c"]),
        helper.make_node("Add", ["b", "c"], ["d"]),
        helper.make_node("Relu", ["d"], ["y"]),
    ]
    image = ("x", TensorProto.FLOAT, ["batch", 3, 4, 4])
    result = ("y", TensorProto.FLOAT, ["batch", 3, 4, 4])
    model = model_of(nodes, {"w": weights(3, 3, 1, 1), "v": weights(3, 3, 1, 1)}, [image], [result])
    x_B = weights(8, 3, 4, 4)
    made = convert(model, [INT8], {"x": x_B}, "block")[INT8]
    assert optimised(made, tmp_path / "o.onnx").count("QLinearConv") == 2
    assert error_of(run("onnxruntime", made, x_B), run("reference", model, x_B)) < 0.03


def test_int8_is_a_grid_of_the_largest_value_on_the_samples() -> None:
    w = weights(4, 3)
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": w}, [X], [("y", TensorProto.FLOAT, ["batch", 3])]
    )
    x_B = weights(5, 4)
    made = convert(model, [INT8], {"x": x_B}, "section")[INT8]
    scale, scale_w = np.abs(x_B).max() / 127, np.abs(w).max(axis=0) / 127
    rounded_B, rounded = np.rint(x_B / scale) * scale, np.rint(w / scale_w) * scale_w
    np.testing.assert_allclose(run("reference", made, x_B), rounded_B @ rounded, atol=1e-5)
    cut_off_B = np.clip(np.rint(9 * x_B / scale), -128, 127) * scale
    for engine in ("onnxruntime", "torch"):
        np.testing.assert_allclose(run(engine, made, 9 * x_B), cut_off_B @ rounded, atol=1e-4)


def test_float16_leaves_to_float32_what_half_cannot_hold() -> None:
    """Sums, signs and what the samples or the weights make too large."""
    nodes = [
        helper.make_node("Mul", ["x", "big"], ["large"], name="beyond"),
        helper.make_node("Mul", ["large", "small"], ["back"], name="behind"),
        helper.make_node("Relu", ["back"], ["relu"], name="fits"),
        helper.make_node("Softmax", ["relu"], ["soft"], name="soft"),
        helper.make_node("Sign", ["relu"], ["sign"], name="sign"),
        helper.make_node("Add", ["soft", "sign"], ["y"], name="end"),
    ]
    constants = {"big": np.float32(3e4).reshape(1), "small": np.float32(1e-5).reshape(1)}
    model = model_of(nodes, constants, [X], [("y", TensorProto.FLOAT, ["batch", 4])])
    x_B = weights(6, 4, scale=3.0)
    made = convert(model, [FLOAT16], {"x": x_B}, "section")[FLOAT16]
    graph = onnx.load_model_from_string(made).graph
    is_half = {node.name: node.output[0].endswith("/float16") for node in graph.node if node.op_type != "Cast"}
    assert is_half == {
        "beyond": False, "behind": False, "fits": True, "soft": False, "sign": False, "end": True,
    }  # fmt: skip
    for engine in ("reference", "onnxruntime"):  # torch has no Softmax
        np.testing.assert_allclose(run(engine, made, x_B), run("reference", model, x_B), atol=2e-3)


def test_large_weights_stay_float32_and_others_need_no_room() -> None:
    def of(largest_weight: float) -> list[str]:
        constants = {"w": np.array([[largest_weight, 1e-3]] * 4, np.float32)}
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
        model = model_of(nodes, constants, [X], [("y", TensorProto.FLOAT, ["batch", 2])])
        return operators(convert(model, [FLOAT16], {"x": np.full((1, 4), 1e-4, np.float32)}, "section")[FLOAT16])

    assert "Cast" not in of(7e4)
    assert "Cast" in of(6e4)


@pytest.mark.parametrize("precision", [FLOAT16, INT8])
def test_what_passes_through_loses_nothing(precision: str) -> None:
    """The cut at the input sends the image as it is."""
    model = model_of([helper.make_node("Identity", ["x"], ["y"])], {}, [X], [("y", TensorProto.FLOAT, ["batch", 4])])
    x_B = weights(3, 4)
    np.testing.assert_array_equal(run("onnxruntime", convert(model, [precision], {"x": x_B}, "s")[precision], x_B), x_B)


def test_what_leaves_a_section_is_not_rounded_whatever_it_is_called() -> None:
    image, result = ("x", TensorProto.FLOAT, ["batch", 1, 3, 3]), ("y", TensorProto.FLOAT, ["batch", 2, 3, 3])
    conv = helper.make_node("Conv", ["x", "w"], ["c"])
    model = model_of([conv, helper.make_node("Identity", ["c"], ["y"])], {"w": weights(2, 1, 1, 1)}, [image], [result])
    x_B = weights(5, 1, 3, 3)
    made = convert(model, [INT8], {"x": x_B}, "section")[INT8]
    assert operators(made).count("QuantizeLinear") == 1
    assert len(np.unique(run("reference", made, x_B))) > len(np.unique(np.rint(x_B / np.abs(x_B).max() * 127)))


def test_ranges_are_those_of_all_samples() -> None:
    model = model_of(
        [helper.make_node("Abs", ["x"], ["a"]), helper.make_node("Neg", ["a"], ["y"])], {}, [X],
        [("y", TensorProto.FLOAT, ["batch", 4])],
    )  # fmt: skip
    x_B = np.zeros((40, 4), np.float32)
    x_B[37, 2] = -7
    assert largest(onnx.load_model_from_string(model), {"x": x_B}, "section") == {"x": 7.0, "a": 7.0, "y": 7.0}


@pytest.mark.parametrize(("make", "precision", "error"), [
    (lambda: relu("batch", 4), "int4", (ConfigError, "no precision 'int4'.* float32, float16, int8, float8_e4m3")),
    (lambda: relu("batch", 4), INT8, (BundleError, "section: .*cannot be run on calibration samples")),
    (lambda: with_branch(), FLOAT16, (BundleError, r"section: node 'pick' \(If\) holds a graph of its own")),
], ids=["unknown", "other rows", "control flow"])  # fmt: skip
def test_what_cannot_be_converted_is_refused(
    make: Callable[[], bytes], precision: str, error: tuple[type[Exception], str]
) -> None:
    with pytest.raises(error[0], match=error[1]):
        convert(make(), [precision], {"x": weights(3, 5)}, "section")


def with_branch() -> bytes:
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["z"], value_float=1.0)], "b", [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [])],
    )  # fmt: skip
    node = helper.make_node("If", ["yes"], ["z1"], name="pick", then_branch=branch, else_branch=branch)
    nodes = [node, helper.make_node("Add", ["x", "z1"], ["y"])]
    return model_of(nodes, {"yes": np.array(True)}, [X], [("y", TensorProto.FLOAT, ["batch", 4])])


def test_what_is_not_finite_on_the_samples_is_refused() -> None:
    model = model_of([helper.make_node("Log", ["x"], ["y"])], {}, [X], [("y", TensorProto.FLOAT, ["batch", 4])])
    with pytest.raises(BundleError, match="tensor 'y' is not finite"):
        convert(model, [FLOAT16], {"x": np.zeros((2, 4), np.float32)}, "section")


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    """Three views that share no Section, ReLU features, an exit with a head; before and after."""
    folder = tmp_path_factory.mktemp("precisions")
    plain = make_tiny_bundle(folder / "plain", head=True, num_relu=6)
    return plain, add_precisions(plain, [FLOAT16, INT8], folder / "more", images=images(32))


def test_every_section_and_head_of_a_bundle_gets_its_files(several: tuple[Bundle, Bundle]) -> None:
    plain, more = several
    sections = [s for level in more.manifest.levels for s in (*level.sections.values(), level.head) if s is not None]
    assert len(sections) == 6
    for section in sections:
        assert section.precisions == {p: f"{section.name}.{p}.onnx" for p in (FLOAT16, INT8)}
        assert "QuantizeLinear" in operators(more.read(section.file_in(INT8)))
        assert "Cast" in operators(more.read(section.file_in(FLOAT16)))
        assert more.read(section.file_in(FLOAT32)) == plain.read(section.file)
        with pytest.raises(
            BundleError, match=f"{section.name}.* holds no float8_e4m3 of it, only float32, float16, int8"
        ):
            section.file_in(FLOAT8_E4M3)
    assert Bundle.open(more.folder).digest == more.digest


@pytest.mark.parametrize("precision", [FLOAT16, INT8])
def test_levels_run_in_a_precision(several: tuple[Bundle, Bundle], precision: str) -> None:
    plain, more = several
    preprocess = Preprocessor(plain.manifest.preprocess)
    views_NB = np.stack([preprocess.many(view) for view in images(40, seed=5)])
    rows = section_rows(plain, views_NB)

    def levels(bundle: Bundle, precision: str) -> Levels:
        make, views = engine_maker("onnxruntime"), {view: view for view in bundle.manifest.views}
        return Levels(bundle, make, views=views, joins=True, runs={1, 2}, precision=precision)

    exact, lower = levels(plain, FLOAT32), levels(more, precision)
    for index in range(3):
        for part, section in plain.manifest.levels[index].sections.items():
            expected, found = (x[index].run(part, rows[section.name])[LOGITS] for x in (exact, lower))
            assert 0 < np.abs(expected - found).max() < TOLERANCE[precision] * np.abs(expected).max()
    exact.close()
    lower.close()


def test_a_bundle_without_images_asks_for_some(several: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="keeps no calibration images; give some by --samples"):
        add_precisions(several[0], [INT8], tmp_path / "none")
    with pytest.raises(BundleError, match="images of 2 views; Bundle 'tiny' takes 3"):
        add_precisions(several[0], [INT8], tmp_path / "none", images=images(4)[:2])
