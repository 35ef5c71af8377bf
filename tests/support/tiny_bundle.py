"""A Bundle small enough for unit tests: three views of 2x2 pixels, six sign bits each, exits on three tiers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tierline.core.bundle import Bundle, Exit, Level, Manifest, Preprocess, Section, Tensor, write_bundle
from tierline.core.plan import Hierarchy, HierarchyNode
from tierline.core.types import Tier

VIEWS = ["left", "middle", "right"]
LABELS = ["ant", "bee", "cat"]
NUM_BITS = 6
IMAGE, LOGITS = Tensor("float32", (1, 2, 2)), Tensor("float32", (3,))
BITS = Tensor("float32", (NUM_BITS,))
FUSED = Tensor("float32", (NUM_BITS * len(VIEWS),))


def make_tiny_bundle(
    folder: Path,
    *,
    aggregator: str = "concat",
    head: bool = False,
    num_relu: int = 0,
    seed: int = 7,
    tiers: tuple[Tier, Tier, Tier] = (Tier.DEVICE, Tier.EDGE, Tier.CLOUD),
) -> Bundle:
    """`aggregator` fuses level-0 features; with `head`, the local exit is an FC block over concatenated logits.

    `num_relu` makes features of so many ReLU values instead of the sign bits, `seed` draws other weights, `tiers` says
    where levels run.
    """
    feature = Tensor("float32", (num_relu,)) if num_relu else BITS
    (width,) = feature.shape
    fused = Tensor("float32", (width * len(VIEWS),)) if aggregator == "concat" else feature
    codec = "raw" if num_relu else "bitplane"
    rng = np.random.default_rng(seed)
    files: dict[str, bytes] = {}

    def section(name: str, source: tuple[str, Tensor], outputs: dict[str, Tensor]) -> Section:
        files[f"{name}.onnx"] = _model(rng, source, "feature" in outputs, width, bool(num_relu))
        return Section(name, f"{name}.onnx", {source[0]: source[1]}, outputs)

    climbs = {"logits": LOGITS, "feature": feature}
    devices = {view: section(f"device-{view}", ("image", IMAGE), climbs) for view in VIEWS}
    edge = section("edge", ("fused", fused), climbs)
    cloud = section("cloud", ("fused", feature), {"logits": LOGITS})
    local = Exit("local")
    if head:
        files["head.onnx"] = _model(rng, ("fused", Tensor("float32", (9,))), False, NUM_BITS)
        local = Exit(
            "local",
            aggregator="concat",
            head=Section("head", "head.onnx", {"fused": Tensor("float32", (9,))}, {"logits": LOGITS}),
        )
    manifest = Manifest(
        schema=1,
        name="tiny",
        version=1,
        task="classification",
        labels=LABELS,
        preprocess=Preprocess(size=(2, 2), channels=1, mean=(0.5,), std=(0.25,)),
        views=VIEWS,
        levels=[
            Level(tiers[0], devices, local, feature_aggregator=aggregator, feature_codec=codec),
            Level(tiers[1], {"*": edge}, Exit("edge"), feature_codec=codec),
            Level(tiers[2], {"*": cloud}, Exit("cloud")),
        ],
        files={},
    )
    return write_bundle(folder, manifest, files)


def three_tiers() -> Hierarchy:
    """Three devices, an edge node, a cloud."""
    devices = [HierarchyNode(f"device-{view}", Tier.DEVICE, "edge", (view,)) for view in VIEWS]
    return Hierarchy((HierarchyNode("cloud", Tier.CLOUD), HierarchyNode("edge", Tier.EDGE, "cloud"), *devices))


def images(num_samples: int, seed: int = 0) -> np.ndarray:
    """uint8 (N, B, H, W)."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (len(VIEWS), num_samples, 2, 2), dtype=np.uint8)


def _model(rng: np.random.Generator, source: tuple[str, Tensor], climbs: bool, width: int, relu: bool = False) -> bytes:
    """Flatten, FC, sign or ReLU: the `feature`; then FC to the logits."""
    name, tensor = source
    num_inputs = int(np.prod(tensor.shape))
    constants = {
        "w": rng.normal(size=(num_inputs, width)).astype(np.float32),
        "b": rng.normal(scale=0.3, size=width).astype(np.float32),
        "fc": rng.normal(scale=1.5, size=(width, 3)).astype(np.float32),
        "zero": np.array(0, np.float32),
        "one": np.array(1, np.float32),
        "minus": np.array(-1, np.float32),
    }
    nodes = [
        helper.make_node("Flatten", [name], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["sum"]),
        helper.make_node("GreaterOrEqual", ["sum", "zero"], ["mask"]),
        helper.make_node("Where", ["mask", "one", "minus"], ["feature"]),
        helper.make_node("MatMul", ["feature", "fc"], ["logits"]),
    ]
    if relu:
        nodes[2:4] = [helper.make_node("Relu", ["sum"], ["feature"])]
        constants = {key: constants[key] for key in ("w", "b", "fc")}
    outputs = [("logits", 3), *([("feature", width)] if climbs else [])]
    graph = helper.make_graph(
        nodes,
        "section",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *tensor.shape])],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, ["batch", size]) for out, size in outputs],
        [numpy_helper.from_array(array, key) for key, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())
