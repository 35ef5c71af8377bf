"""Cuts a network into Sections: ONNX files that one after the other compute what the whole network computes.

The first takes `image`, the others `fused`; all but the last give `feature`, the last `logits`. Where several tensors
cross a cut they are flattened and joined into the one `feature` that a link carries, and taken apart above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tierline.core.bundle import Section, Tensor
from tierline.core.errors import BundleError
from tierline.core.types import TensorSpec
from tierline.models.graph import Network

IMAGE, FUSED, FEATURE, LOGITS = "image", "fused", "feature", "logits"


@dataclass(frozen=True, slots=True)
class CutSection:
    """A Section with the content of its file."""

    section: Section
    model: bytes


def cut(network: Network, after: Sequence[Sequence[str]]) -> list[CutSection]:
    """Cut after sets of tensors, from the input upwards; one more Section than sets.

    Raises BundleError for unknown tensors, sets that do not separate, or sets out of order.
    """
    belows = []
    for tensors in after:
        below = network.below(tensors)
        missing = [name for name in network.crossing(below) if name not in tensors]
        if missing:
            raise BundleError(
                f"{network.where}: cutting at {'+'.join(tensors)} leaves another way past it, over {', '.join(missing)}"
            )
        belows.append(below)
    return cut_nodes(network, belows)


def cut_nodes(network: Network, belows: Sequence[frozenset[int]]) -> list[CutSection]:
    """Cut by nodes: each set holds all nodes below one cut. Raises BundleError as `cut` does."""
    done: frozenset[int] = frozenset()
    last = frozenset(range(len(network.nodes)))
    sections = []
    entry: tuple[str, ...] = (network.input,)
    for position, below in enumerate([*belows, last]):
        if not done <= below or (position and below == done):
            raise BundleError(f"{network.where}: cut {position + 1} is not above the one before it")
        is_last = position == len(belows)
        leave = (network.output,) if is_last else network.crossing(below)
        for name in leave:
            if name not in network.tensors:
                raise BundleError(f"{network.where}: tensor {name!r} cannot cross a link: not float32 rows of a batch")
        sections.append(_section(network, f"section-{position}", below - done, entry, leave, position == 0, is_last))
        done, entry = below, leave
    return sections


def _section(
    network: Network, name: str, part: frozenset[int], entry: tuple[str, ...], leave: tuple[str, ...], *ends: bool
) -> CutSection:
    is_first, is_last = ends
    source, result = IMAGE if is_first else FUSED, LOGITS if is_last else FEATURE
    draft = _Draft(network)
    into, out = draft.spec_of(entry), draft.spec_of(leave)
    draft.unpack(source, entry)
    made = {tensor for index in part for tensor in network.nodes[index].outputs}
    draft.copy(made)
    draft.pack(result, leave)
    model = draft.model(name, (source, into), (result, out))
    inputs, outputs = {source: Tensor(into.dtype, into.shape)}, {result: Tensor(out.dtype, out.shape)}
    section = Section(name, f"{name}.onnx", inputs, outputs)
    return CutSection(section, model)


@dataclass
class _Draft:
    """One Section's graph under construction."""

    network: Network
    nodes: list[Any] = field(default_factory=list)
    weights: dict[str, Any] = field(default_factory=dict)

    def spec_of(self, tensors: tuple[str, ...]) -> TensorSpec:
        """Of what crosses the link: the tensor itself, or all of them in a row."""
        specs = [self.network.tensors[name] for name in tensors]
        return specs[0] if len(specs) == 1 else TensorSpec(specs[0].dtype, (sum(x.num_values for x in specs),))

    def unpack(self, source: str, tensors: tuple[str, ...]) -> None:
        if len(tensors) == 1:
            self.nodes.append(helper.make_node("Identity", [source], [_own(tensors[0])]))
            return
        specs = [self.network.tensors[name] for name in tensors]
        sizes = self._constant("sizes", [spec.num_values for spec in specs])
        flat = [f"{_own(name)}/flat" for name in tensors]
        self.nodes.append(helper.make_node("Split", [source, sizes], flat, axis=1))
        for name, row, spec in zip(tensors, flat, specs, strict=True):
            shape = self._constant(f"{_own(name)}/shape", [0, *spec.shape])
            self.nodes.append(helper.make_node("Reshape", [row, shape], [_own(name)]))

    def pack(self, result: str, tensors: tuple[str, ...]) -> None:
        if len(tensors) == 1:
            self.nodes.append(helper.make_node("Identity", [_own(tensors[0])], [result]))
            return
        rows = [f"{_own(name)}/row" for name in tensors]
        for name, row in zip(tensors, rows, strict=True):
            self.nodes.append(helper.make_node("Flatten", [_own(name)], [row], axis=1))
        self.nodes.append(helper.make_node("Concat", rows, [result], axis=1))

    def copy(self, made: set[str]) -> None:
        """The nodes that make these tensors, with the weights and the constant nodes that they read."""
        graph = self.network.model.graph
        weights = {x.name: x for x in graph.initializer}
        live = {self.network.input, *(name for node in self.network.nodes for name in node.outputs)}
        wanted, chosen = set(made), []
        for node in reversed(graph.node):
            if wanted.isdisjoint(node.output):
                continue
            chosen.append(node)
            wanted.update(name for name in node.input if name and name not in live)
        for node in reversed(chosen):
            own = onnx.NodeProto()
            own.CopyFrom(node)
            own.input[:] = [_own(name) for name in node.input]
            own.output[:] = [_own(name) for name in node.output]
            self.nodes.append(own)
            for name in node.input:
                if name in weights:
                    weight = onnx.TensorProto()
                    weight.CopyFrom(weights[name])
                    weight.name = _own(name)
                    self.weights[weight.name] = weight

    def model(self, name: str, source: tuple[str, TensorSpec], result: tuple[str, TensorSpec]) -> bytes:
        """The checked model."""
        whole = self.network.model
        into, out = (
            helper.make_tensor_value_info(key, TensorProto.FLOAT, ["batch", *spec.shape])
            for key, spec in (source, result)
        )
        graph = helper.make_graph(self.nodes, name, [into], [out], initializer=list(self.weights.values()))
        model = helper.make_model(
            graph, opset_imports=whole.opset_import, ir_version=whole.ir_version, producer_name="tierline"
        )
        try:
            onnx.checker.check_model(model)
        except Exception as error:
            reason = " ".join(str(error).split())[:160]
            raise BundleError(f"{self.network.where}: {name} is no valid ONNX model ({reason})") from error
        raw: bytes = model.SerializeToString(deterministic=True)
        return raw

    def _constant(self, name: str, values: list[int]) -> str:
        self.weights[name] = numpy_helper.from_array(np.array(values, np.int64), name)
        return name


def _own(name: str) -> str:
    """A tensor's name within a Section, where the public names are taken; '' stands for an input left out."""
    return f"inner/{name}" if name else ""
