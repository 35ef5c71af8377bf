"""Small networks as ONNX, written node by node: quick to make, with outputs that differ from image to image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tierline.models.graph import Network, network_of

CHANNELS, SIDE = 3, 8


def linear(shape: tuple[int, ...], *, side: int = SIDE, seed: int = 0, scale: float = 0.3, batch: Any = "batch") -> Any:
    """image -> convolution -> all values times a matrix -> `shape`; sigmoid behind it where there are two axes."""
    rng = np.random.default_rng(seed)
    num = int(np.prod(shape))
    weights = {
        "kernel": rng.normal(0, scale, (4, CHANNELS, 3, 3)).astype(np.float32),
        "matrix": rng.normal(0, scale, (4 * side * side, num)).astype(np.float32),
        "shape": np.array([batch if batch != "batch" else 0, *shape]),
    }
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("Flatten", ["relu"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "matrix"], ["rows"]),
        helper.make_node("Reshape", ["rows", "shape"], ["grid" if len(shape) > 1 else "out"]),
    ]
    if len(shape) > 1:
        nodes.append(helper.make_node("Sigmoid", ["grid"], ["out"]))
    graph = helper.make_graph(
        nodes,
        "own",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, CHANNELS, side, side])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [batch, *shape])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def linear_network(shape: tuple[int, ...], where: str = "own.onnx", **options: Any) -> Network:
    return network_of(linear(shape, **options), where)


def write_images(folder: Path, num: int, *, classes: int = 0, side: int = SIDE) -> np.ndarray:
    """`NAME.png`, in class folders c0, c1, ... where there are some; uint8 (S, side, side, 3) in the folder's order."""
    images = np.random.default_rng(5).integers(0, 256, (num, side, side, CHANNELS), dtype=np.uint8)
    for index, image in enumerate(images):
        path = folder / (f"c{index * classes // num}" if classes else "") / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return images
