"""A cascade as a Bundle: a small network answers below, what it is not sure of climbs as the image to a larger one.

Viola, Jones, "Rapid object detection using a boosted cascade of simple features", CVPR 2001, named the form. Here a
level's Section is a whole network with its own normalisation, and its `feature` is the image that came in, uint8, so
that `jpeg` or `webp` can carry it. All networks see the same picture, each in its own size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.compose
from onnx import TensorProto, helper, numpy_helper

from tierline.core.bundle import Preprocess, Section, Tensor
from tierline.core.errors import BundleError, ConfigError
from tierline.models.cut import FEATURE, FUSED, IMAGE, LOGITS, CutSection
from tierline.models.graph import Network

_PREFIX = "inner/"


@dataclass(frozen=True)
class Stage:
    """One network of a cascade, and the normalisation it was trained with, of pixels in [0, 1]."""

    network: Network
    preprocess: Preprocess


def cascade(stages: Sequence[Stage]) -> tuple[list[CutSection], Preprocess]:
    """The Sections from the smallest upwards, and what makes their image. Raises BundleError, ConfigError."""
    if not 2 <= len(stages) <= 3:
        raise ConfigError(
            f"a cascade of {len(stages)} networks; give two (device, cloud) or three (device, edge, cloud)"
        )
    last = stages[-1]
    for stage in stages[:-1]:
        _check_pair(stage, last)
    height = max(stage.preprocess.size[0] for stage in stages)
    width = max(stage.preprocess.size[1] for stage in stages)
    channels = last.preprocess.channels
    image = Tensor("float32", (channels, height, width))
    sections = []
    for index, stage in enumerate(stages):
        source = (IMAGE, image) if index == 0 else (FUSED, Tensor("uint8", image.shape))
        sections.append(_section(f"section-{index}", stage, source, climbs=stage is not last))
    # Pixels as they are, 0 to 255: each network normalises them itself, and they climb without loss.
    return sections, Preprocess((height, width), channels, (0.0,) * channels, (1 / 255,) * channels)


def _check_pair(stage: Stage, last: Stage) -> None:
    ours, theirs = stage.network, last.network
    if stage.preprocess.channels != last.preprocess.channels:
        raise BundleError(
            f"{ours.where}: takes {stage.preprocess.channels} channels, {theirs.where} takes "
            f"{last.preprocess.channels}; in a cascade all see the same image"
        )
    shapes = [network.tensors[network.output].shape for network in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise BundleError(
            f"{ours.where}: gives {list(shapes[0])} for an image, {theirs.where} gives {list(shapes[1])}; in a cascade "
            "all answer alike"
        )


def _section(name: str, stage: Stage, source: tuple[str, Tensor], *, climbs: bool) -> CutSection:
    network, (key, tensor) = stage.network, source
    inner = onnx.compose.add_prefix(network.model, _PREFIX)
    graph, nodes, weights = inner.graph, list[Any](), list[Any]()

    def constant(what: str, value: Any) -> str:
        weights.append(numpy_helper.from_array(np.asarray(value), what))
        return what

    def node(op: str, inputs: list[str], out: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [out], name=out, **attributes))
        return out

    x = key if tensor.dtype == "float32" else node("Cast", [key], "pixels", to=TensorProto.FLOAT)
    x = _resized(x, (tensor.shape[1], tensor.shape[2]), stage.preprocess.size, node, constant)
    deviation = np.asarray(stage.preprocess.std, np.float64)[:, None, None]
    mean = np.asarray(stage.preprocess.mean, np.float64)[:, None, None]
    x = node("Mul", [x, constant("scale", (1 / (255 * deviation)).astype(np.float32))], "scaled")
    node("Add", [x, constant("offset", (-mean / deviation).astype(np.float32))], _PREFIX + network.input)
    tail = [helper.make_node("Identity", [_PREFIX + network.output], [LOGITS], name=LOGITS)]
    outputs = {LOGITS: Tensor("float32", network.tensors[network.output].shape)}
    if climbs:
        if tensor.dtype == "float32":
            tail.append(helper.make_node("Cast", [key], [FEATURE], name=FEATURE, to=TensorProto.UINT8))
        else:
            tail.append(helper.make_node("Identity", [key], [FEATURE], name=FEATURE))
        outputs[FEATURE] = Tensor("uint8", tensor.shape)
    whole = helper.make_graph(
        [*nodes, *graph.node, *tail],
        name,
        [_value(key, tensor)],
        [_value(out, spec) for out, spec in outputs.items()],
        initializer=[*weights, *graph.initializer],
    )
    model = helper.make_model(
        whole, opset_imports=inner.opset_import, ir_version=inner.ir_version, producer_name="tierline"
    )
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise BundleError(f"{network.where}: {name} is no valid ONNX model ({reason})") from error
    raw: bytes = model.SerializeToString(deterministic=True)
    return CutSection(Section(name, f"{name}.onnx", {key: tensor}, outputs), raw)


def _resized(x: str, size: tuple[int, int], wanted: tuple[int, int], node: Any, constant: Any) -> str:
    """Means of whole blocks where the sides divide, else bilinear."""
    if size == wanted:
        return x
    block = [side // other for side, other in zip(size, wanted, strict=True)]
    if [side * factor for side, factor in zip(wanted, block, strict=True)] == list(size):
        pooled: str = node("AveragePool", [x], "resized", kernel_shape=block, strides=block)
        return pooled
    scales = constant("scales", np.array([1, 1, wanted[0] / size[0], wanted[1] / size[1]], np.float32))
    resized: str = node("Resize", [x, "", scales], "resized", mode="linear")
    return resized


def _value(name: str, tensor: Tensor) -> Any:
    kind = TensorProto.FLOAT if tensor.dtype == "float32" else TensorProto.UINT8
    return helper.make_tensor_value_info(name, kind, ["batch", *tensor.shape])
