"""From what a one-stage detector puts out to the candidates that exits and tasks read (`core.boxes`), within the graph.

Detectors of the YOLO family put out one tensor for N places of their grids: a box and a score for each of K classes,
(4 + K, N) or (N, 4 + K), in some versions with a score of any object between, (N, 5 + K). Added here is what picks the
M best places, so that a few hundred numbers climb and return instead of N x (4 + K), and two detectors of different
grids can answer for each other; where a grid is smaller, rows of zeros fill up. Doubles are taken out by the task,
since that depends on values.

Shape legend: B batch, N places, K classes, M candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tierline.core.boxes import COLUMNS
from tierline.core.errors import BundleError, ConfigError
from tierline.models.graph import Network, network_of

MAX_CANDIDATES = 100
Corners = Literal["cxcywh", "xyxy"]
Unit = Literal["pixels", "shares"]
_OUT = "candidates"
_OPSET = 13


@dataclass(frozen=True)
class BoxForm:
    """How a detector writes its boxes."""

    corners: Corners = "cxcywh"
    """Middle and size, or left, top, right, bottom."""
    unit: Unit = "pixels"
    """Of the network's input, or shares of its sides."""


def with_candidates(network: Network, num_classes: int, form: BoxForm | None = None) -> Network:
    """The network with candidates (B, M, 6) as its output. Raises BundleError for an output of another shape."""
    form, image = form or BoxForm(), network.tensors[network.input].shape
    shape = network.tensors[network.output].shape
    layout = _layout(shape, num_classes)
    if layout is None:
        k = num_classes
        raise BundleError(
            f"{network.where}: its output is (batch, {', '.join(map(str, shape))}); a detector of {k} labels gives "
            f"(batch, {4 + k}, N), (batch, N, {4 + k}) or, with a score of any object, (batch, N, {5 + k})"
        )
    if len(image) != 3:
        raise BundleError(f"{network.where}: input is (batch, {', '.join(map(str, image))}); an image has three axes")
    is_turned, has_object = layout
    graph = _Tail(network.model, network.output, network.where)
    rows = graph.add("Transpose", network.output, perm=[0, 2, 1]) if is_turned else network.output
    box = graph.slice(rows, 0, 4)
    score = graph.slice(rows, 5 if has_object else 4, 2**31)
    if has_object:
        score = graph.add("Mul", score, graph.slice(rows, 4, 5))
    num_places = shape[1] if is_turned else shape[0]
    best = graph.add("ReduceMax", score, axes=[2], keepdims=0)
    index = graph.add("Cast", graph.add("ArgMax", score, axis=2, keepdims=1), to=TensorProto.FLOAT)
    table = graph.add("Concat", graph.corners(box, form, image), graph.unsqueeze(best), index, axis=2)
    num = min(MAX_CANDIDATES, num_places)
    graph.pad(graph.add("GatherElements", table, graph.spread(graph.top(best, num)), axis=1), MAX_CANDIDATES - num)
    return network_of(graph.model(), network.where)


def parse_form(text: str) -> BoxForm:
    """`cxcywh`, `xyxy`, or one of them with `:shares` behind it. Raises ConfigError."""
    corners, _, unit = text.partition(":")
    forms = {(c, u): BoxForm(c, u) for c in ("cxcywh", "xyxy") for u in ("pixels", "shares")}
    found = forms.get((corners, unit or "pixels"))
    if found is None:
        raise ConfigError(f"--boxes {text}: write cxcywh or xyxy, with :shares where the numbers are not pixels")
    return found


def _layout(shape: tuple[int, ...], num_classes: int) -> tuple[bool, bool] | None:
    """Whether places come last, and whether there is a score of any object."""
    if len(shape) != 2:
        return None
    layouts = {4 + num_classes: False, 5 + num_classes: True}
    if shape[1] in layouts:
        return False, layouts[shape[1]]
    return (True, layouts[shape[0]]) if shape[0] in layouts else None


class _Tail:
    """Nodes behind the output of a model."""

    def __init__(self, model: Any, after: str, where: str) -> None:
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        self._versions = {opset.domain: opset.version for opset in model.opset_import}
        if self._versions[""] < _OPSET:
            raise BundleError(
                f"{where}: opset {self._versions['']}; a detector needs {_OPSET} or newer, export it again"
            )
        self._stem = f"{after}/boxes"
        self._num = 0

    def add(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        if op == "ReduceMax" and self._versions[""] >= 18:  # axes became an input
            inputs = (*inputs, self.constant(np.array(attributes.pop("axes"), np.int64)))
        name = name or self._name()
        self._model.graph.node.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(self, value: Any) -> str:
        name = self._name()
        self._model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def slice(self, x: str, start: int, stop: int) -> str:
        """Columns of (B, N, ...)."""
        begin, end, axis = (self.constant(np.array([value], np.int64)) for value in (start, stop, 2))
        return self.add("Slice", x, begin, end, axis)

    def unsqueeze(self, x: str) -> str:
        """(B, N) to (B, N, 1)."""
        return self.add("Unsqueeze", x, self.constant(np.array([2], np.int64)))

    def corners(self, box: str, form: BoxForm, image: tuple[int, ...]) -> str:
        """Boxes (B, N, 4) as left, top, right, bottom, shares of the image."""
        _, height, width = image
        if form.corners == "cxcywh":
            turn = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [-0.5, 0, 0.5, 0], [0, -0.5, 0, 0.5]], np.float32)
            box = self.add("MatMul", box, self.constant(turn))
        if form.unit == "pixels":
            scale = np.array([1 / width, 1 / height, 1 / width, 1 / height], np.float32)
            box = self.add("Mul", box, self.constant(scale))
        return box

    def top(self, score: str, num: int) -> str:
        """Places of the best scores: int64 (B, M)."""
        values, places = self._name(), self._name()
        k = self.constant(np.array([num], np.int64))
        self._model.graph.node.append(helper.make_node("TopK", [score, k], [values, places], name=places, axis=1))
        return places

    def spread(self, places: str) -> str:
        """(B, M) to (B, M, 6), the same place in every column."""
        shape = self.constant(np.array([1, 1, COLUMNS], np.int64))
        return self.add("Expand", self.unsqueeze(places), shape)

    def pad(self, rows: str, num: int) -> None:
        """(B, M, 6) with so many rows of zeros more: the candidates."""
        pads = self.constant(np.array([0, 0, 0, 0, num, 0], np.int64))
        self.add("Pad", rows, pads, name=_OUT)

    def model(self) -> Any:
        """The model whose one output are the candidates."""
        graph = self._model.graph
        del graph.output[:]
        value = helper.make_tensor_value_info(_OUT, TensorProto.FLOAT, ["batch", MAX_CANDIDATES, COLUMNS])
        graph.output.append(value)
        return self._model

    def _name(self) -> str:
        self._num += 1
        return f"{self._stem}/{self._num}"
